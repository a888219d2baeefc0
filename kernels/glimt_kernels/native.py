"""The compiled module, or the reason why there is none, and what all its CPU kernels ask for."""

from __future__ import annotations

from typing import Any

import torch  # before the compiled module: its libgomp is then the one that both use

from glimt_kernels.dispatch import Case

# Raised with every change of what csrc/bind.cpp offers.
INTERFACE = 4

try:
    from glimt_kernels import _native as lib
except ImportError as error:  # an installation without the compiled part still works, by the references
    lib = None  # type: ignore[assignment]  # nothing calls it
    ABSENT: str | None = f"the compiled module could not be loaded ({error}); reinstall glimt with a C++17 compiler"
else:
    # An editable install does not rebuild by itself.
    fits = getattr(lib, "interface", int)() == INTERFACE
    ABSENT = None if fits else "the compiled module is of another version than the Python beside it; reinstall glimt"

__all__ = ["ABSENT", "cpu_float32_reasons", "cuda_reasons", "instruction_set", "instruction_sets", "lib"]

# What the CPU kernels are compiled for (cmake/cpu.cmake), best first, and what a processor must have to run it.
_NEEDS = {"v4": "AVX-512 (F, BW, CD, DQ, VL)", "v3": "AVX2, FMA and BMI2", "baseline": "nothing special"}


def _dtype_name(dtype: torch.dtype | None) -> str:
    return "of several dtypes" if dtype is None else str(dtype).removeprefix("torch.")


def instruction_set() -> str:
    """What CPU code is chosen by, in PyTorch's words and in ours: the last bits of sums follow from it."""
    ours = "none" if ABSENT else lib.isa()
    return f"{torch.backends.cpu.get_cpu_capability()} (PyTorch), {ours} (glimt_kernels)"


def cpu_float32_reasons(case: Case) -> list[str]:
    """Why a CPU float32 kernel cannot run ``case``."""
    reasons = [ABSENT] if ABSENT else []
    if case.device != "cpu":
        reasons.append(f"it runs on the CPU, the tensors are on {case.device}")
    if case.dtype != torch.float32:
        reasons.append(f"it computes float32, the tensors are {_dtype_name(case.dtype)}")
    return reasons


def instruction_sets() -> list[dict[str, Any]]:
    """Those of the CPU kernels, best first: ``isa``, ``chosen``, ``reasons`` (why it cannot run)."""
    if ABSENT:
        return [{"isa": isa, "chosen": False, "reasons": [ABSENT]} for isa in _NEEDS]
    runs = lib.isas()
    return [
        {"isa": isa, "chosen": isa == lib.isa(), "reasons": [] if isa in runs else [_isa_reason(isa)]} for isa in _NEEDS
    ]


def _isa_reason(isa: str) -> str:
    return f"this processor has not all of {_NEEDS[isa]}, or the compiler that built glimt does not know x86-64-{isa}"


def cuda_reasons(case: Case) -> list[str]:
    """Why a CUDA float32 kernel of the compiled module cannot run ``case``."""
    reasons = [ABSENT] if ABSENT else []
    if not ABSENT and not lib.cuda_archs():
        reasons.append("built without CUDA (no nvcc was found, or GLIMT_CUDA=OFF)")
    if case.device != "cuda":
        reasons.append(f"it runs on CUDA, the tensors are on {case.device}")
    if case.dtype != torch.float32:
        reasons.append(f"it reads float32, the tensors are {_dtype_name(case.dtype)}")
    return reasons

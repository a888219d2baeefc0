"""Triton, or the reason why there is none, and what all Triton kernels share.

With ``TRITON_INTERPRET=1`` in the environment before the first import, Triton runs kernels in Python on CPU tensors:
how their arithmetic is tested on machines without a GPU. Such a run must be asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case

if TYPE_CHECKING:
    import triton
    import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Importing Triton takes longer than the engine's own start: only where its kernels could run, or are asked for.
_WANTED = INTERPRETED or torch.version.cuda is not None or os.environ.get("GLIMT_TRITON", "0") == "1"

ABSENT: str | None = None
VERSION: tuple[int, ...] = (0, 0)  # major and minor of Triton, for what one of them compiles worse than another
tl = None  # kernels are defined all the same, and never run
if not _WANTED:
    ABSENT = "this PyTorch is not built for CUDA (to compile for other machines all the same, set GLIMT_TRITON=1)"
else:
    try:
        import triton
        import triton.language as tl

        VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
    except ImportError as error:
        ABSENT = f"Triton could not be imported ({error}); install it with: pip install 'glimt[triton]'"

ARCHS = (80, 86, 89, 90, 100, 120)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

__all__ = [
    "ABSENT",
    "ARCHS",
    "DTYPES",
    "INTERPRETED",
    "VERSION",
    "Build",
    "jit",
    "last_together",
    "on_device_of",
    "power_of_2",
    "reluctance",
    "steps",
    "tl",
    "triton_reasons",
]


def jit(function: Any) -> Any:
    """``triton.jit``, or the function as it is where Triton is absent: nothing then calls it."""
    return function if ABSENT else triton.jit(function)


def last_together(x: Tensor) -> Tensor:
    """``x`` itself if its last axis lies together in memory, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def steps(x: Tensor) -> tuple[int, int]:
    """Elements from sample to sample and from token to token of [B, N, ...], 0 along an axis that is shared."""
    return x.stride(0) if x.shape[0] > 1 else 0, x.stride(1) if x.shape[1] > 1 else 0


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def triton_reasons(case: Case, dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[str]:
    """Why a Triton kernel for these dtypes cannot run ``case``."""
    reasons = [ABSENT] if ABSENT else []
    if case.device != "cuda" and not (INTERPRETED and case.device == "cpu"):
        reasons.append(f"it runs on CUDA, the tensors are on {case.device}")
    if 0 < case.arch < 80:
        reasons.append(f"it needs sm_80 or newer, the device is sm_{case.arch}")
    if case.dtype is not None and case.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        reasons.append(f"it takes {known}, the tensors are {str(case.dtype).removeprefix('torch.')}")
    if case.device == "cpu" and case.dtype == torch.bfloat16:
        reasons.append("Triton's interpreter computes bfloat16 wrongly")
    return reasons


def reluctance(case: Case) -> list[str]:
    """Why an interpreted kernel is not chosen by itself."""
    return ["it would be interpreted, which is for tests"] if case.device == "cpu" else []


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    with torch.cuda.device(device):
        yield


def on_device_of(x: Tensor) -> Any:
    """Triton launches on the current device: inside, that is the one of ``x``."""
    return _on(x.device) if x.is_cuda else nullcontext()


@dataclass(frozen=True)
class Build:
    """One shipped configuration of one kernel.

    Attributes:
        op, case: what it is for, as the table shows it.
        kernel: the ``triton.jit`` function.
        signature: Triton's type of each argument that is not a constant; pointers and 64-bit strides are taken as
            multiples of 16, as the tensors of a model are. A call is compiled for its own: Triton passes a stride that
            fits 32 bits as i32 and takes one of 1 as a constant, so what a row counts is near what runs, not that.
        constants: values of the ``constexpr`` arguments.
        num_warps, num_stages: launch options.
        archs: the chips it is shipped for.
        needs: for a chip, instructions that must be there (beginnings of SASS mnemonics).
        wide: whether loads and stores of 128 bits must be there.
    """

    op: str
    case: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    archs: tuple[int, ...] = ARCHS
    needs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    wide: bool = False

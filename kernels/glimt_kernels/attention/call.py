"""What the choice among attention's implementations depends on, beyond device and chip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case
from glimt_kernels.triton_env import ARCHS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HALVES = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """``Case.sizes`` of attention: ``dtype`` is q's place in DTYPES; ``tokens`` and ``keys`` stop at 2."""

    head_dim: int = 128
    dtype: int = 0
    biased: int = 0
    tokens: int = 2
    keys: int = 2


def chip(arch: int) -> int:
    """The chip whose settings a device takes: the newest known that is no newer than it; 0 for a CPU."""
    return max((known for known in ARCHS if known <= arch), default=0)


def sizes(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[int, ...]:
    dtype = DTYPES.index(q.dtype) if q.dtype in DTYPES else len(DTYPES)
    return Call(q.shape[3], dtype, int(bias is not None), min(q.shape[1], 2), min(k.shape[1], 2))


def call_of(case: Case) -> Call:
    return Call(*case.sizes) if case.sizes else Call(dtype=DTYPES.index(case.dtype or torch.float32))


def dtype_of(case: Case) -> torch.dtype | None:
    """q's dtype; the bias may have another, with which ``Case.dtype`` is None."""
    index = call_of(case).dtype
    return DTYPES[index] if index < len(DTYPES) else None


def library_reasons(case: Case, head_dim: int) -> list[str]:
    """What the libraries' kernels have in common: halves on CUDA, no bias, at least two keys, ``head_dim`` at most."""
    call, dtype, reasons = call_of(case), dtype_of(case), []
    if case.device != "cuda":
        reasons.append(f"it runs on CUDA, the tensors are on {case.device}")
    if dtype not in HALVES:
        reasons.append(f"it takes float16 and bfloat16, the tensors are {str(dtype).removeprefix('torch.')}")
    if call.biased:
        reasons.append("it takes no bias")
    if call.head_dim > head_dim or call.head_dim % 8:
        reasons.append(f"it takes a head_dim of at most {head_dim} in steps of 8, found {call.head_dim}")
    if call.tokens < 2 or call.keys < 2:
        reasons.append("it needs more than one query and one key")
    return reasons


def into(out: Tensor | None, result: Tensor) -> Tensor:
    """``result`` written into ``out`` where one is given, else contiguous."""
    return result.contiguous() if out is None else out.copy_(result)

"""What the choice among linear's implementations depends on, beyond device and chip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "gelu_tanh", "gelu_erf")


class Call(NamedTuple):
    """``Case.sizes`` of linear.

    ``dtype`` is the place in DTYPES of that of x, weight and bias; ``activation`` the place in ACTIVATIONS; the others
    are 0 or 1: whether there are a gate, a residual, a bias, and nothing to compute or sum over.
    """

    dtype: int = 0
    activation: int = 0
    gate: int = 0
    residual: int = 0
    bias: int = 1
    empty: int = 0


def sizes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> tuple[int, ...]:
    flags = (gate is not None, residual is not None, bias is not None, not (x.numel() and weight.numel()))
    return Call(DTYPES.index(x.dtype), ACTIVATIONS.index(activation), *map(int, flags))


def call_of(case: Case) -> Call:
    """The call; where its sizes are not known, a plain one in the case's dtype."""
    return Call(*case.sizes) if case.sizes else Call(DTYPES.index(case.dtype or torch.float32))


def dtype_of(case: Case) -> torch.dtype:
    """That of x, weight and bias; gate and residual may have others, with which ``Case.dtype`` is None."""
    return DTYPES[call_of(case).dtype]


def is_many_passes(case: Case) -> bool:
    """Whether a library's product would be followed by passes of their own."""
    call = call_of(case)
    return bool(call.residual) or ACTIVATIONS[call.activation] == "gelu_erf" or bool(call.activation and not call.bias)

"""gelu_tanh: the activation of the transformers' feed-forward layers."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, define
from glimt_kernels.gelu_tanh import native, reference


def gelu_tanh(x: Tensor, bias: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """``y (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))) / 2`` with ``y = x + bias``.

    Args:
        x: [..., C] floating, at least one axis; copied first unless contiguous.
        bias: [C] or None.
        impl: "native" or "reference" instead of the chosen implementation.

    Returns:
        The shape and dtype of ``x``, contiguous.

    Raises:
        ValueError: shapes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: GELU (arXiv:1606.08415), the tanh approximation, as ``torch.nn.functional.gelu(approximate="tanh")``.
    """
    if x.dim() == 0 or (bias is not None and bias.shape != x.shape[-1:]):
        found = f"x {list(x.shape)}" + (f", bias {list(bias.shape)}" if bias is not None else "")
        raise ValueError(f"gelu_tanh takes x [..., C] and bias [C]; found {found}")
    result: Tensor = OP(x, bias, impl=impl)
    return result


def _fake(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _reference(x: Tensor, bias: Tensor | None) -> Tensor:
    return reference.gelu_tanh(x, bias).to(x.dtype).contiguous()


OP = define(
    "gelu_tanh",
    "(Tensor x, Tensor? bias) -> Tensor",
    [
        Candidate("gelu_tanh", "native", native.gelu_tanh, native.reasons),
        Candidate("gelu_tanh", "reference", _reference),
    ],
    _fake,
)

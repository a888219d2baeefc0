"""layer_norm and rms_norm: norms with weights of their own, as they stand before and in a cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.norm import reference, triton
from glimt_kernels.triton_env import DTYPES, reluctance, triton_reasons

_DTYPES = (*DTYPES, torch.float64)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, out: Tensor | None = None, impl: str | None = None
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis (``var`` biased).

    Args:
        x: [..., D] floating.
        weight, bias: [D] floating; may be of another dtype than x.
        eps: added to the variance.
        out: like x, any strides; written and returned instead of a new tensor.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        [..., D], contiguous, the dtype of ``x``; computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: arXiv:1607.06450.
    """
    _check("layer_norm", x, weight=weight, bias=bias)
    args = (x, weight, bias, eps)
    result: Tensor = LAYER_NORM(*args, impl=impl) if out is None else LAYER_NORM.into(out, *args, impl=impl)
    return result


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None, impl: str | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis.

    Arguments, result and errors as for :func:`layer_norm`. Source: arXiv:1910.07467.
    """
    _check("rms_norm", x, weight=weight)
    args = (x, weight, eps)
    result: Tensor = RMS_NORM(*args, impl=impl) if out is None else RMS_NORM.into(out, *args, impl=impl)
    return result


def _check(op: str, x: Tensor, **weights: Tensor) -> None:
    if x.dim() and x.shape[-1] and all(t.shape == x.shape[-1:] for t in weights.values()):
        return
    found = ", ".join(f"{name} {list(t.shape)}" for name, t in {"x": x, **weights}.items())
    raise ValueError(f"{op} takes x [..., D], D > 0, and {' and '.join(weights)} [D]; found {found}")


def _fake_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _sizes(x: Tensor, *rest: Tensor | float) -> tuple[int, ...]:
    """The place of x's dtype among those known: the weights may be of another, with which ``Case.dtype`` is None."""
    return (_DTYPES.index(x.dtype) if x.dtype in _DTYPES else len(_DTYPES),)


def _triton_reasons(case: Case) -> list[str]:
    known = case.sizes and case.sizes[0] < len(_DTYPES)
    return triton_reasons(case._replace(dtype=_DTYPES[case.sizes[0]] if known else case.dtype or torch.float64))


LAYER_NORM = define(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
    [
        Candidate("layer_norm", "triton", triton.layer_norm, _triton_reasons, reluctance),
        Candidate("layer_norm", "reference", reference.layer_norm),
    ],
    _fake_layer_norm,
    sizes=_sizes,
)
RMS_NORM = define(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps) -> Tensor",
    [
        Candidate("rms_norm", "triton", triton.rms_norm, _triton_reasons, reluctance),
        Candidate("rms_norm", "reference", reference.rms_norm),
    ],
    _fake_rms_norm,
    sizes=_sizes,
)

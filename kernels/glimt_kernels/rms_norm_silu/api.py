"""rms_norm_silu: normalization over channels and SiLU, as every residual block of the Wan VAEs begins."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, define
from glimt_kernels.rms_norm_silu import native, reference


def rms_norm_silu(
    x: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    eps: float = 1e-12,
    *,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """``y = sqrt(C) * x / max(||x||_2, eps) * gamma + bias`` over the last axis, then ``y * sigmoid(y)`` if ``silu``.

    Args:
        x: [..., C] floating. Fastest when contiguous, which ``t.permute(0, 2, 3, 4, 1)`` of a ``channels_last_3d``
            tensor is; any other layout is copied first.
        gamma: [C].
        bias: [C] or None.
        silu: apply SiLU after the normalization.
        eps: lower bound of the norm (1e-12, as ``torch.nn.functional.normalize`` has it).
        out: room for the result: contiguous, of the shape, dtype and device of ``x``, none of its memory shared.
        impl: "native" or "reference" instead of the chosen implementation.

    Returns:
        [..., C], contiguous, the dtype of ``x``; computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: RMSNorm (arXiv:1910.07467) in the form of ``wan/modules/vae2_1.py`` (RMS_norm).
    """
    if gamma.shape != x.shape[-1:] or (bias is not None and bias.shape != gamma.shape):
        found = f"x {list(x.shape)}, gamma {list(gamma.shape)}" + (
            f", bias {list(bias.shape)}" if bias is not None else ""
        )
        raise ValueError(f"rms_norm_silu takes x [..., C], gamma [C] and bias [C]; found {found}")
    args = (x, gamma, bias, silu, eps)
    if out is None:
        result: Tensor = OP(*args, impl=impl)
        return result
    if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device) or not out.is_contiguous():
        raise ValueError(
            f"rms_norm_silu writes to contiguous {x.dtype} {list(x.shape)} on {x.device}; "
            f"out is {out.dtype} {list(out.shape)} on {out.device}, strides {out.stride()}"
        )
    written: Tensor = OP.into(out, *args, impl=impl)
    return written


def _fake(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _reference(
    x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float, out: Tensor | None = None
) -> Tensor:
    result = reference.rms_norm_silu(x, gamma, bias, silu, eps)
    return result.contiguous() if out is None else out.copy_(result)


OP = define(
    "rms_norm_silu",
    "(Tensor x, Tensor gamma, Tensor? bias, bool silu, float eps) -> Tensor",
    [
        Candidate("rms_norm_silu", "native", native.rms_norm_silu, native.reasons),
        Candidate("rms_norm_silu", "reference", _reference),
    ],
    _fake,
)

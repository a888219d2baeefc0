"""rms_norm_silu: normalization over channels and SiLU, as every residual block of the Wan VAEs begins."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.rms_norm_silu import native, reference, triton
from glimt_kernels.triton_env import DTYPES, reluctance, triton_reasons

_DTYPES = (*DTYPES, torch.float64)


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
        gamma: [C] floating; may be of another dtype than x, as may the bias.
        bias: [C] or None.
        silu: apply SiLU after the normalization.
        eps: lower bound of the norm (1e-12, as ``torch.nn.functional.normalize`` has it).
        out: like x, any strides; written and returned instead of a new tensor.
        impl: "native", "triton" or "reference" instead of the chosen implementation.

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
    result: Tensor = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def _fake(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _reference(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float) -> Tensor:
    return reference.rms_norm_silu(x, gamma, bias, silu, eps).contiguous()


def _sizes(x: Tensor, *rest: object) -> tuple[int, ...]:
    """The place of x's dtype among those known: the weights may be of another, with which ``Case.dtype`` is None."""
    return (_DTYPES.index(x.dtype) if x.dtype in _DTYPES else len(_DTYPES),)


def _triton_reasons(case: Case) -> list[str]:
    known = case.sizes and case.sizes[0] < len(_DTYPES)
    return triton_reasons(case._replace(dtype=_DTYPES[case.sizes[0]] if known else case.dtype or torch.float64))


OP = define(
    "rms_norm_silu",
    "(Tensor x, Tensor gamma, Tensor? bias, bool silu, float eps) -> Tensor",
    [
        Candidate("rms_norm_silu", "native", native.rms_norm_silu, native.reasons),
        Candidate("rms_norm_silu", "triton", triton.rms_norm_silu, _triton_reasons, reluctance),
        Candidate("rms_norm_silu", "reference", _reference),
    ],
    _fake,
    sizes=_sizes,
)

"""upsample_conv: height and width doubled and convolved, as one convolution of the small picture."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.causal_conv3d.call import Call, empty
from glimt_kernels.causal_conv3d.libraries import aten_reasons, onednn_reasons
from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.triton_env import reluctance, triton_reasons
from glimt_kernels.upsample_conv import libraries, reference, triton


def upsample_conv(x: Tensor, folded: Tensor, bias: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """``conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)`` for every frame.

    Args:
        x: [B, C, F, H, W] floating. Fastest with channels innermost (``torch.channels_last_3d``).
        folded: [4 N, C, 2, 2], the dtype of x: ``fold_upsample(weight)`` of weight [N, C, 3, 3].
        bias: [N], the dtype of x.
        impl: "onednn", "triton", "aten" or "reference" instead of the chosen implementation.

    Returns:
        [B, N, F, 2 H, 2 W], channels innermost, the dtype of x; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes or dtypes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: sub-pixel convolution, arXiv:1609.05158, backwards.
    """
    n = folded.shape[0] // 4
    fits = x.dim() == 5 and x.is_floating_point() and folded.shape == (4 * n, x.shape[1], 2, 2) and folded.numel() > 0
    fits = fits and folded.dtype == x.dtype and (bias is None or (bias.shape == (n,) and bias.dtype == x.dtype))
    if not fits:
        named = {"x": x, "folded": folded, "bias": bias}
        raise ValueError(
            "upsample_conv takes x [B, C, F, H, W], folded [4 N, C, 2, 2] (of fold_upsample) and bias [N] of one "
            "floating dtype; found "
            + ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in named.items() if t is not None)
        )
    result: Tensor = OP(x, folded, bias, impl=impl)
    return result


def _fake(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    b, _, f, h, w = x.shape
    return empty((b, folded.shape[0] // 4, f, 2 * h, 2 * w), x)


def _sizes(x: Tensor, folded: Tensor, *rest: object) -> tuple[int, ...]:
    return Call(folded.shape[0] // 4, int(not x.numel()))


def _triton_reluctance(case: Case) -> list[str]:
    if case.device == "cuda" and case.dtype == torch.float32:
        return ["in float32 cuDNN goes first: Triton makes three products of one"]
    return reluctance(case)


OP = define(
    "upsample_conv",
    "(Tensor x, Tensor folded, Tensor? bias=None) -> Tensor",
    [
        Candidate("upsample_conv", "onednn", libraries.onednn, onednn_reasons),
        Candidate("upsample_conv", "triton", triton.upsample_conv, triton_reasons, _triton_reluctance),
        Candidate("upsample_conv", "aten", libraries.aten, aten_reasons),
        Candidate("upsample_conv", "reference", reference.upsample_conv),
    ],
    _fake,
    sizes=_sizes,
)

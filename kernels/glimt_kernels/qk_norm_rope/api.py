"""qk_norm_rope: RMS norm over the full width, then rotary positions, as Wan's self-attention begins."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, define
from glimt_kernels.qk_norm_rope import native, reference


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` for q and k alike, over all heads of a token together; then each pair
    of neighbouring channels ``(a, b)`` of every head becomes ``(a cos - b sin, a sin + b cos)``.

    Args:
        q, k: [B, N, heads, head_dim] floating, head_dim even. The last two axes must be contiguous, the others need
            not be: ``qkv.chunk(3, -1)`` of a fused projection is taken as it is. Any other layout is copied first.
        q_weight, k_weight: [heads * head_dim].
        cos, sin: [N, head_dim / 2], one angle per pair, the same for every sample and head.
        eps: added to the mean square.
        impl: "native" or "reference" instead of the chosen implementation.

    Returns:
        q and k turned: [B, N, heads, head_dim], contiguous, their dtype; computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: RMSNorm (arXiv:1910.07467), RoFormer (arXiv:2104.09864); neighbouring pairs as in ``wan/modules/model.py``.
    """
    _check(q, k, q_weight, k_weight, cos, sin)
    result: tuple[Tensor, Tensor] = OP(q, k, q_weight, k_weight, cos, sin, eps, impl=impl)
    return result


def _check(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.dim() == 4 and q.shape == k.shape and q.shape[3] % 2 == 0:
        width, table = (q.shape[2] * q.shape[3],), (q.shape[1], q.shape[3] // 2)
        if q_weight.shape == width and k_weight.shape == width and cos.shape == table and sin.shape == table:
            return
    found = ", ".join(
        f"{name} {list(t.shape)}"
        for name, t in zip(
            ("q", "k", "q_weight", "k_weight", "cos", "sin"), (q, k, q_weight, k_weight, cos, sin), strict=True
        )
    )
    raise ValueError(
        "qk_norm_rope takes q, k [B, N, heads, head_dim] (head_dim even), q_weight, k_weight [heads * head_dim] and "
        f"cos, sin [N, head_dim / 2]; found {found}"
    )


def _fake(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(k.shape, dtype=k.dtype, device=k.device),
    )


OP = define(
    "qk_norm_rope",
    "(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, float eps) -> (Tensor, Tensor)",
    [
        Candidate("qk_norm_rope", "native", native.qk_norm_rope, native.reasons),
        Candidate("qk_norm_rope", "reference", reference.qk_norm_rope),
    ],
    _fake,
)

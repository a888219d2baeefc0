"""What qk_norm_rope means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, per_head: bool = False) -> Tensor:
    """Over all heads of a token together, weight [heads * head_dim], or over each by itself, weight [head_dim]."""
    mean_square = x.square().mean(dim=-1 if per_head else (-2, -1), keepdim=True)
    return x * torch.rsqrt(mean_square + eps) * (weight if per_head else weight.view(x.shape[-2:]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: str = "interleaved") -> Tensor:
    """Turn the pairs of channels of every head by the token's angles: x [B, N, heads, head_dim].

    Interleaved: channels (2j, 2j + 1); half: channels (j, j + head_dim / 2).
    """
    if cos.dim() == 2:
        cos, sin = cos[:, None, :], sin[:, None, :]
    if pairs == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def norm_rope(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
) -> Tensor:
    """Not yet rounded to the dtype of ``x``."""
    wide = x if x.dtype == torch.float64 else x.float()
    return rotate(rms_norm(wide, weight, eps, per_head), cos, sin, pairs)


def arrange(x: Tensor, order: Tensor | None) -> Tensor:
    """Token ``order[p]`` at place ``p``; zeros where ``order`` names no token: x [B, N, heads, head_dim]."""
    if order is None:
        return x
    named = (order >= 0) & (order < x.shape[1])
    return F.pad(x, (0, 0, 0, 0, 0, 1))[:, torch.where(named, order.long(), x.shape[1])]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    turned_q = norm_rope(q, q_weight, cos, sin, eps, per_head, pairs).to(q.dtype)
    turned_k = norm_rope(k, k_weight, cos, sin, eps, per_head, pairs).to(k.dtype)
    return arrange(turned_q, order), arrange(turned_k, order)

"""What qk_norm_rope means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over all heads of a token together: x [B, N, heads, head_dim], weight [heads * head_dim]."""
    mean_square = x.square().mean(dim=(-2, -1), keepdim=True)
    return x * torch.rsqrt(mean_square + eps) * weight.view(x.shape[-2:])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels (2j, 2j + 1) of every head by the token's angles: x [B, N, heads, head_dim]."""
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return rotate(rms_norm(wide, weight, eps), cos, sin).to(x.dtype)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return norm_rope(q, q_weight, cos, sin, eps), norm_rope(k, k_weight, cos, sin, eps)

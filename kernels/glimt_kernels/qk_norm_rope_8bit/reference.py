"""What qk_norm_rope_8bit means: obvious PyTorch, any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.eight_bit.reference import levels, scale_of
from glimt_kernels.qk_norm_rope.reference import arrange, norm_rope


def quantize(x: Tensor, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [B, N, heads, head_dim] -> levels of that shape, scales [B, heads, blocks] float32."""
    n = x.shape[1]
    blocks = -(-n // block)
    padded = F.pad(x, (0, 0, 0, 0, 0, blocks * block - n)).reshape(x.shape[0], blocks, block, *x.shape[2:])
    scale = scale_of(padded.abs().amax((2, 4)), dtype).float()  # [B, blocks, heads]
    level = levels(padded, scale[:, :, None, :, None], dtype).flatten(1, 2)[:, :n]
    dense = torch.contiguous_format
    return level.clone(memory_format=dense), scale.transpose(1, 2).clone(memory_format=dense)


def dequantize(level: Tensor, scale: Tensor, block: int) -> Tensor:
    """The values that levels and scales stand for, float32: what an attention over them computes with."""
    rows = scale.transpose(1, 2).repeat_interleave(block, 1)[:, : level.shape[1]]
    return level.float() * rows[..., None]


def qk_norm_rope_8bit(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool,
    pairs: str,
    dtype: torch.dtype,
    block: int,
    q_factor: float,
    k_mean: Tensor | None,
    order: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    turned_q = norm_rope(q, q_weight, cos, sin, eps, per_head, pairs)
    turned_k = norm_rope(k, k_weight, cos, sin, eps, per_head, pairs)
    if k_mean is not None:
        turned_k = turned_k - k_mean[:, None]
    q_level, q_scale = quantize(arrange(turned_q, order), block, dtype)
    k_level, k_scale = quantize(arrange(turned_k, order), block, dtype)
    return q_level, q_scale * q_factor, k_level, k_scale

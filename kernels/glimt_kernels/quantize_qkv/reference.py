"""What quantize_blocks and quantize_channels mean: obvious PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.eight_bit.reference import levels, scale_of
from glimt_kernels.qk_norm_rope_8bit.reference import quantize


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def quantize_blocks(x: Tensor, mean: Tensor | None, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wide = _widen(x)
    return quantize(wide if mean is None else wide - mean[:, None], block, dtype)


def tokens_last(x: Tensor) -> Tensor:
    """A copy of x [B, N, heads, head_dim] in whose memory the tokens of a channel lie together, 16 bytes apart."""
    copy = empty_tokens_last(x, x.dtype)
    copy.copy_(x)
    return copy


def empty_tokens_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for one-byte values of the shape of ``x``, laid out as :func:`tokens_last` does."""
    samples, tokens, heads, head_dim = x.shape
    # More than the tokens even where they are a multiple of 16: else an exported graph would be for such lengths alone,
    # or for all others alone, as PyTorch asks whether a row ends where the next begins.
    room = torch.empty((samples, heads, head_dim, (tokens // 16 + 1) * 16), dtype=dtype, device=x.device)
    return room[..., :tokens].permute(0, 3, 1, 2)


def quantize_channels(v: Tensor) -> tuple[Tensor, Tensor]:
    wide = _widen(v)
    largest = wide.abs().amax(1) if v.shape[1] else wide.new_zeros(v.shape[0], *v.shape[2:])
    scale = scale_of(largest, torch.float8_e4m3fn).float()
    return tokens_last(levels(wide, scale[:, None], torch.float8_e4m3fn)), scale

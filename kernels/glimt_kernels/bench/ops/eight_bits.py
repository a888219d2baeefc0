"""8-bit numbers by plain PyTorch, as the workloads' baselines and for reading results: no op of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.eight_bit.reference import LIMITS, SMALLEST

INT8, FP8 = torch.int8, torch.float8_e4m3fn


def quantize(x: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Levels, and scales with the axes kept, of what is largest along ``axes``; in float32."""
    wide = x.float()
    scale = wide.abs().amax(axes, keepdim=True).clamp_min(SMALLEST) / LIMITS[dtype]
    level = wide / scale
    return (level.round() if dtype == INT8 else level).to(dtype), scale


def rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Levels [..., K] and scales [...]."""
    level, scale = quantize(x, (-1,), dtype)
    return level, scale.squeeze(-1)


def values(level: Tensor, scale: Tensor) -> Tensor:
    """What levels [..., K] and the scales [...] of their rows stand for, in float64."""
    return level.double() * scale.double()[..., None]

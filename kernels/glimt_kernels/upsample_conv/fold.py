"""Doubling a picture folded into the weights of the 3x3 convolution behind it."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_upsample(weight: Tensor) -> Tensor:
    """``[N, C, 3, 3]`` over a doubled picture -> ``[4 N, C, 2, 2]`` over the small one, channels innermost in memory.

    Output channel ``(2 py + px) N + n`` is channel n of the pixel at row py, column px of the four that a pixel
    becomes. Along one axis, phase 0 sees the pixel before with weight 0 and its own with weights 1 + 2; phase 1 its own
    with 0 + 1 and the next with 2: 16 products for a small pixel instead of 36. Exact algebra; the sums are taken in
    float32 (float64 for float64) and rounded to the dtype of ``weight`` once.
    """
    wide = weight if weight.dtype == torch.float64 else weight.float()
    rows = torch.stack([_pair(wide, 2, phase) for phase in (0, 1)])
    phases = torch.stack([_pair(rows, 4, phase) for phase in (0, 1)], dim=1)
    return phases.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _pair(weight: Tensor, dim: int, phase: int) -> Tensor:
    a, b, c = weight.unbind(dim)
    return torch.stack([a, b + c] if phase == 0 else [a + b, c], dim)

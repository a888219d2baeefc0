"""What frames_to_uint8 means: obvious PyTorch, any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def frames_to_uint8(pixels: Tensor) -> Tensor:
    unit = (pixels.float() * 0.5 + 0.5).clamp(0, 1)
    levels = torch.round(unit * 255).nan_to_num(nan=0.0)
    return levels.permute(0, 2, 3, 4, 1).to(torch.uint8, memory_format=torch.contiguous_format)

"""What frames_to_uint8, frames_to_nv12 and frames_to_yuv420 mean: obvious PyTorch, any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of BT.709: what red and blue contribute to luma.
KR, KB = 0.2126, 0.0722


def _unit(pixels: Tensor) -> Tensor:
    """In [0, 1], float32."""
    return (pixels.float() * 0.5 + 0.5).clamp(0, 1)


def frames_to_uint8(pixels: Tensor) -> Tensor:
    levels = torch.round(_unit(pixels) * 255).nan_to_num(nan=0.0)
    return levels.permute(0, 2, 3, 4, 1).to(torch.uint8, memory_format=torch.contiguous_format)


def frames_to_nv12(pixels: Tensor, planar: bool = False) -> Tensor:
    red, green, blue = _unit(pixels).nan_to_num(nan=0.0).unbind(1)  # [B, F, H, W]
    y = KR * red + (1 - KR - KB) * green + KB * blue
    cb, cr = (blue - y) / (2 * (1 - KB)), (red - y) / (2 * (1 - KR))
    quarters = [F.avg_pool2d(chroma, 2) for chroma in (cb, cr)]
    b, f, h, w = y.shape
    # Cb and Cr in turn, or one after the other.
    chroma = torch.stack(quarters, dim=2 if planar else -1).reshape(b, f, h // 2, w)
    levels = torch.cat([16 + 219 * y, 128 + 224 * chroma], dim=2)
    return levels.round().to(torch.uint8)

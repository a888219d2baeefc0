"""frames_to_nv12: a decoded chunk to what a hardware encoder takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops.frames_to_uint8 import CHUNK
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def planes(pixels: Tensor) -> Tensor:
    """NV12 before it is rounded, in the dtype of ``pixels``: [B, F, 3 H / 2, W]."""
    r, g, b = (pixels * 0.5 + 0.5).clamp(0, 1).unbind(1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    chroma = [F.avg_pool2d(difference, 2) for difference in ((b - y) / 1.8556, (r - y) / 1.5748)]
    return torch.cat([16 + 219 * y, 128 + 224 * torch.stack(chroma, -1).flatten(-2)], 2)


def eager(pixels: Tensor) -> Tensor:
    return planes(pixels.float()).round().to(torch.uint8)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    _, height, width = shape.clip
    pixels = (1.3 * torch.randn(1, 3, CHUNK, height, width, device=device)).to(dtype)
    return Workload(
        op="frames_to_nv12",
        shape=name,
        args=(pixels,),
        eager=eager,
        flops=12 * pixels.numel(),
        num_bytes=pixels.nbytes + pixels.numel() // 2,
        exact=lambda: [planes(pixels.double())],
    )

"""frames_to_nv12: a decoded chunk to what a hardware encoder takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops.frames_to_uint8 import CHUNK
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def planes(pixels: Tensor, planar: bool = False) -> Tensor:
    """NV12, or one plane after the other, before it is rounded, in the dtype of ``pixels``: [B, F, 3 H / 2, W]."""
    r, g, b = (pixels * 0.5 + 0.5).clamp(0, 1).unbind(1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    chroma = [F.avg_pool2d(difference, 2) for difference in ((b - y) / 1.8556, (r - y) / 1.5748)]
    both = torch.stack(chroma, 2 if planar else -1).reshape(*y.shape[:2], y.shape[2] // 2, y.shape[3])
    return torch.cat([16 + 219 * y, 128 + 224 * both], 2)


def eager(pixels: Tensor, planar: bool) -> Tensor:
    return planes(pixels.float(), planar).round().to(torch.uint8)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, False)


def planar(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """frames_to_yuv420: what a software encoder takes."""
    return _workload(name, shape, dtype, device, True)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, planar: bool) -> Workload:
    _, height, width = shape.clip
    pixels = (1.3 * torch.randn(1, 3, CHUNK, height, width, device=device)).to(dtype)
    return Workload(
        op="frames_to_nv12",
        shape=name,
        args=(pixels, planar),
        eager=eager,
        flops=12 * pixels.numel(),
        num_bytes=pixels.nbytes + pixels.numel() // 2,
        exact=lambda: [planes(pixels.double(), planar)],
    )

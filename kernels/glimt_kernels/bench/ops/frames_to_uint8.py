"""frames_to_uint8: a decoded chunk to the bytes of its frames."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload

CHUNK = 4


def eager(pixels: Tensor) -> Tensor:
    """As Diffusers' ``VideoProcessor`` and ``(images * 255).round()``, on the device."""
    unit = (pixels.float() * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8).contiguous()


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    _, height, width = shape.clip
    pixels = (1.3 * torch.randn(1, 3, CHUNK, height, width, device=device)).to(dtype)
    return of(name, (pixels,))


def of(name: str, args: Args) -> Workload:
    (pixels,) = args
    return Workload(
        op="frames_to_uint8",
        shape=name,
        args=args,
        eager=eager,
        flops=4 * pixels.numel(),
        num_bytes=pixels.nbytes + pixels.numel(),
        exact=lambda: [eager(pixels).double()],
    )

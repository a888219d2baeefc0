"""upsample_conv: the last doubling of Wan's decoder, from half the size to all of it, for a chunk of four frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops.causal_conv3d import CL, part, tensors
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload
from glimt_kernels.upsample_conv.fold import fold_upsample

LINES = 5  # of the small picture: what the first eight of the large one see


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """``eager`` is what stands there otherwise: the upsampled picture, and nine products where the op has four."""
    x, large, bias, *_ = tensors(shape, 2, dtype, device)
    n = x.shape[1] // 2
    weight = (large[:n, :, 0] * 3**0.5).contiguous(memory_format=torch.channels_last)
    folded, bias = fold_upsample(weight), bias[:n]

    def double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        y = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
        return y.view(x.shape[0], -1, *y.shape[1:]).transpose(1, 2)

    def eager(x: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
        return double(x, weight, bias)

    def exact() -> list[Tensor]:
        return list(part([double(x[..., :LINES, :].double(), weight.double(), bias.double())]))

    out_bytes = 4 * x.nbytes // 2
    return Workload(
        op="upsample_conv",
        shape=name,
        args=(x.contiguous(memory_format=CL), folded, bias),
        eager=eager,
        flops=2 * x.shape[2] * x.shape[3] * x.shape[4] * folded.numel(),
        num_bytes=x.nbytes + folded.nbytes + out_bytes,
        exact=exact,
        part=part,
        kind="matrix",
    )

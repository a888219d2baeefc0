"""quantize_channels: plain values in 8 bits for attention_8bit, a scale for each channel of each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.bench.ops import eight_bits
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def eager(v: Tensor) -> tuple[Tensor, Tensor]:
    level, scale = eight_bits.quantize(v, (1,), eight_bits.FP8)
    return level, scale.squeeze(1)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    v = torch.randn(1, shape.tokens, shape.heads, shape.head_dim, device=device).to(dtype)

    def part(result: Sequence[Tensor]) -> Sequence[Tensor]:
        level, scale = result
        return [level.double() * scale.double()[:, None]]

    return Workload(
        op="quantize_channels",
        shape=name,
        args=(v,),
        eager=eager,
        flops=2 * v.numel(),
        num_bytes=2 * v.nbytes + v.numel() + 4 * shape.width,  # once for the scales, once for the levels
        exact=lambda: [v.double()],
        part=part,
    )

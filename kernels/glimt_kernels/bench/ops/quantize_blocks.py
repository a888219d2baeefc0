"""quantize_blocks: plain keys, less their mean, in 8 bits for attention_8bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops import eight_bits
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

BLOCK = 128


def eager(x: Tensor, mean: Tensor, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    samples, tokens, heads, head_dim = x.shape
    padded = F.pad(x.float() - mean[:, None], (0, 0, 0, 0, 0, -tokens % block))
    level, scale = eight_bits.quantize(padded.view(samples, -1, block, heads, head_dim), (2, 4), dtype)
    return level.flatten(1, 2)[:, :tokens], scale[:, :, 0, :, 0].transpose(1, 2)


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, torch.int8)


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, torch.float8_e4m3fn)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, kind: torch.dtype) -> Workload:
    x = torch.randn(1, shape.tokens, shape.heads, shape.head_dim, device=device).to(dtype)
    mean = x.mean(1)

    def part(result: Sequence[Tensor]) -> Sequence[Tensor]:
        level, scale = result
        wide = scale.double().repeat_interleave(BLOCK, 2)[:, :, : shape.tokens].transpose(1, 2)
        return [level.double() * wide[..., None]]

    return Workload(
        op="quantize_blocks",
        shape=name,
        args=(x, mean, BLOCK, kind),
        eager=eager,
        flops=4 * x.numel(),
        num_bytes=x.nbytes + x.numel() + 4 * shape.heads * -(-shape.tokens // BLOCK),
        exact=lambda: [x.double() - mean.double()[:, None]],
        part=part,
    )

"""qk_norm_rope_8bit: queries and keys normed, turned, and in 8 bits with a scale for each 128 tokens of a head."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops import eight_bits, qk_norm_rope
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

BLOCK = 128


def eager(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As written down without a kernel: the normed and turned, then blocks of them in 8 bits."""
    dtype, block, q_factor = args[9:12]
    q, k = qk_norm_rope.eager(*args[:9])
    (q_level, q_scale), (k_level, k_scale) = (_blocks(x, block, dtype) for x in (q, k))
    return q_level, q_scale * q_factor, k_level, k_scale


def _blocks(x: Tensor, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n = x.shape[1]
    padded = F.pad(x, (0, 0, 0, 0, 0, -n % block)).view(x.shape[0], -1, block, *x.shape[2:])
    level, scale = eight_bits.quantize(padded, (2, 4), dtype)
    return level.flatten(1, 2)[:, :n].contiguous(), scale[:, :, 0, :, 0].transpose(1, 2).contiguous()


def _values(level: Tensor, scale: Tensor, block: int) -> Tensor:
    rows = scale.double().transpose(1, 2).repeat_interleave(block, 1)[:, : level.shape[1]]
    return level.double() * rows[..., None]


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.INT8)


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.FP8)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, eight: torch.dtype) -> Workload:
    wide = qk_norm_rope.workload(name, shape, dtype, device)
    q = wide.args[0]
    factor = math.log2(math.e) * shape.head_dim**-0.5

    def exact() -> list[Tensor]:
        turned_q, turned_k = wide.exact()
        return [turned_q * factor, turned_k]

    return Workload(
        op="qk_norm_rope_8bit",
        shape=name,
        args=(*wide.args[:9], eight, BLOCK, factor, None, None),
        eager=eager,
        flops=26 * q.numel(),
        num_bytes=2 * (q.nbytes + q.numel()) + 8 * shape.heads * math.ceil(shape.tokens / BLOCK),
        exact=exact,
        part=lambda result: [_values(result[0], result[1], BLOCK), _values(result[2], result[3], BLOCK)],
    )

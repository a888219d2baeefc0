"""ada_norm_8bit: the norm before self-attention, its rows in 8 bits for the products that follow."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.bench.ops import ada_norm, eight_bits
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def eager(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return eight_bits.rows(ada_norm.eager(x, scale, shift, eps), dtype)


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.INT8)


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.FP8)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, eight: torch.dtype) -> Workload:
    wide = ada_norm.workload(name, shape, dtype, device)
    x = wide.args[0]
    return Workload(
        op="ada_norm_8bit",
        shape=name,
        args=(*wide.args, eight),
        eager=eager,
        flops=11 * x.numel(),
        num_bytes=x.nbytes + x.numel() + 4 * shape.tokens,
        exact=wide.exact,
        part=lambda result: [eight_bits.values(*result)],
    )

"""gated_ada_norm_8bit: a gated branch joins the stream, and the norm after it gives 8-bit rows."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.bench.ops import eight_bits, gated_ada_norm
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def eager(
    x: Tensor, residual: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    normed, stream = gated_ada_norm.eager(x, residual, gate, scale, shift, eps)
    return *eight_bits.rows(normed, dtype), stream


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.INT8)


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, eight_bits.FP8)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, eight: torch.dtype) -> Workload:
    wide = gated_ada_norm.workload(name, shape, dtype, device)
    x = wide.args[0]
    return Workload(
        op="gated_ada_norm_8bit",
        shape=name,
        args=(*wide.args, eight),
        eager=eager,
        flops=13 * x.numel(),
        num_bytes=3 * x.nbytes + x.numel() + 4 * shape.tokens,
        exact=wide.exact,
        part=lambda result: [eight_bits.values(result[0], result[1]), result[2]],
    )

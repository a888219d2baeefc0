"""quantize_rows: activations in 8 bits before the second product of the MLP, where they are widest."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.bench.ops import eight_bits
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload
from glimt_kernels.linear_quant.quantize import KINDS


def eager(x: Tensor, kind: str, groups: bool) -> tuple[Tensor, Tensor]:
    return eight_bits.rows(x, KINDS[kind][0])


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "int8")


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "fp8")


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, kind: str) -> Workload:
    x = torch.randn(1, shape.tokens, shape.ffn_dim, device=device).to(dtype)
    return Workload(
        op="quantize_rows",
        shape=name,
        args=(x, kind, False),
        eager=eager,
        flops=3 * x.numel(),
        num_bytes=x.nbytes + x.numel() + 4 * shape.tokens,
        exact=lambda: [x.double()],
        part=lambda result: [eight_bits.values(*result)],
    )

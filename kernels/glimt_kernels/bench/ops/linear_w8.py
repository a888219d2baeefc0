"""linear_w8: the first product of the MLP with a weight held in 8 bits, beside the same held in the working dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops import linear_w8a8
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload, sample


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "int8")


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "fp8")


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, kind: str) -> Workload:
    x, weight, bias = linear_w8a8.draw(shape, dtype, device, kind, "channel")
    plain_weight = weight.dequantize().to(dtype)
    rows = sample(shape.tokens, device)

    def eager(x: Tensor, *rest: Any) -> Tensor:
        return F.linear(x, plain_weight, bias)

    return Workload(
        op="linear_w8",
        shape=name,
        args=(x, weight.data, weight.scales, bias, None, None, "none", dtype),
        eager=eager,
        flops=linear_w8a8.flops(shape),
        num_bytes=x.nbytes + weight.nbytes + shape.tokens * shape.ffn_dim * dtype.itemsize,
        exact=lambda: [linear_w8a8.exact(x[0, rows], weight, bias)],
        part=lambda result: [result[0][0, rows]],
        kind="matrix",
    )

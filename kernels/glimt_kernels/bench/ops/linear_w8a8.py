"""linear_w8a8: the first product of the MLP, both sides in 8 bits already, beside the same in the working dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload, sample
from glimt_kernels.linear_quant.api import quantize_rows
from glimt_kernels.linear_quant.quantize import QuantizedWeight, dequantize_rows, quantize_weight


def draw(
    shape: Shape, dtype: torch.dtype, device: torch.device, kind: str, granularity: str
) -> tuple[Tensor, QuantizedWeight, Tensor]:
    """Tokens [1, N, D], the weight [ffn_dim, D] of the MLP's first product, and its bias."""
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(dtype)
    weight = torch.randn(shape.ffn_dim, shape.width, device=device) * shape.width**-0.5
    return x, quantize_weight(weight, kind, granularity), torch.randn(shape.ffn_dim, device=device).to(dtype)


def flops(shape: Shape) -> float:
    return 2.0 * shape.tokens * shape.width * shape.ffn_dim


def exact(x: Tensor, weight: QuantizedWeight, bias: Tensor) -> Tensor:
    """``x W^T + bias`` in float64, of rows [R, K]."""
    wide = QuantizedWeight(weight.data, weight.scales.double(), weight.kind, weight.granularity).dequantize()
    return x.double() @ wide.T + bias.double()


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "int8", "channel")


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "fp8", "channel")


def fp8_blocks(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "fp8", "block")


def _workload(
    name: str, shape: Shape, dtype: torch.dtype, device: torch.device, kind: str, granularity: str
) -> Workload:
    wide_x, weight, bias = draw(shape, dtype, device, kind, granularity)
    data, scales = quantize_rows(wide_x, kind, granularity == "block", impl="reference")
    plain_x, plain_weight = dequantize_rows(data, scales).to(dtype), weight.dequantize().to(dtype)
    rows = sample(shape.tokens, device)

    def eager(*args: Any) -> Tensor:
        """The product that the 8-bit one replaces: operands of the same values, held in the working dtype."""
        return F.linear(plain_x, plain_weight, bias)

    return Workload(
        op="linear_w8a8",
        shape=name,
        args=(data, scales.float(), weight.data, weight.scales, bias, None, None, "none", dtype),
        eager=eager,
        flops=flops(shape),
        num_bytes=data.nbytes + scales.nbytes + weight.nbytes + shape.tokens * shape.ffn_dim * dtype.itemsize,
        exact=lambda: [exact(dequantize_rows(data, scales.double())[0, rows], weight, bias)],
        part=lambda result: [result[0][0, rows]],
        kind="matrix",
    )

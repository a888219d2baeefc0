"""linear_quant: the first product of the MLP in 8 bits with the quantization of its activations, beside cuBLAS.

Errors are against the product of the tokens as they were, so they hold what the rounding to 8 bits costs; the honest
one is that of the same rounding by plain PyTorch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels import dispatch
from glimt_kernels.bench.ops import eight_bits, linear_w8a8
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload, sample
from glimt_kernels.linear_quant.api import linear_quant, quantize_rows
from glimt_kernels.linear_quant.quantize import KINDS, QuantizedWeight


def int8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "int8")


def fp8(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, dtype, device, "fp8")


def honest(x: Tensor, weight: QuantizedWeight, bias: Tensor) -> Tensor:
    level, scale = eight_bits.rows(x, KINDS[weight.kind][0])
    return F.linear(level.float() * scale[..., None], weight.dequantize(), bias.float()).to(x.dtype)


def _workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device, kind: str) -> Workload:
    x, weight, bias = linear_w8a8.draw(shape, dtype, device, kind, "channel")
    plain_weight = weight.dequantize().to(dtype)
    rows = sample(shape.tokens, device)

    def eager(x: Tensor, *rest: Any) -> Tensor:
        return F.linear(x, plain_weight, bias)

    return Workload(
        op="linear_quant",
        shape=name,
        args=(x, weight, bias),
        eager=eager,
        flops=linear_w8a8.flops(shape),
        num_bytes=x.nbytes + weight.nbytes + shape.tokens * shape.ffn_dim * dtype.itemsize,
        exact=lambda: [linear_w8a8.exact(x[0, rows], weight, bias)],
        part=lambda result: [result[0][0, rows]],
        kind="matrix",
        honest=honest,
        runs=_runs(x, weight, bias),
    )


def _runs(x: Tensor, weight: QuantizedWeight, bias: Tensor) -> dict[str, partial[Tensor]]:
    """The implementations whose product can run here, each with the quantization that goes with it."""
    data, scales = quantize_rows(x[:, :32], weight.kind, impl="reference")
    args = (data, scales, weight.data, weight.scales, bias, None, None, "none", x.dtype)
    op = dispatch.find("linear_w8a8")
    case = op.case(args)
    able = [one for one in op.candidates if not dispatch.unsupported_reasons(one, case)]
    names = [one.impl for one in able if one.impl != "triton" or case.device != "cpu"]
    return {impl: partial(linear_quant, impl=impl) for impl in names}

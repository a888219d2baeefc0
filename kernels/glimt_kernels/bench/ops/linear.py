"""linear: the output projection of a self-attention, with gate and residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

ROWS = 256  # checked against float64: all tokens would take minutes


def eager(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return (residual.float() + F.linear(x, weight, bias) * gate).type_as(residual)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    width = shape.width
    x, residual = (torch.randn(1, shape.tokens, width, device=device).to(dtype) for _ in range(2))
    weight = (torch.randn(width, width, device=device) / width**0.5).to(dtype)
    bias, gate = torch.randn(width, device=device).to(dtype), torch.randn(1, 1, width, device=device)

    def part(results: Sequence[Tensor]) -> Sequence[Tensor]:
        return [result[:, :ROWS] for result in results]

    def exact() -> list[Tensor]:
        product = F.linear(x[:, :ROWS].double(), weight.double(), bias.double())
        return [residual[:, :ROWS].double() + product * gate.double()]

    return Workload(
        op="linear",
        shape=name,
        args=(x, weight, bias, gate, residual),
        eager=eager,
        flops=2 * shape.tokens * width * width,
        num_bytes=3 * x.nbytes + weight.nbytes,
        exact=exact,
        part=part,
        kind="matrix",
    )

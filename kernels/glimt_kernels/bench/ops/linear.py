"""linear: the output projection of a self-attention, with gate and residual; and any other call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload

ROWS = 256  # checked against float64: all tokens would take minutes


def eager(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Op by op, the gated sum in float32 as Diffusers has it."""
    out = F.linear(x, weight, bias)
    if activation != "none":
        out = F.gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")
    if residual is None:
        return out
    if gate is None:
        return residual + out
    wide = torch.promote_types(residual.dtype, torch.float32)
    return (residual.to(wide) + out * gate).type_as(residual)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    width = shape.width
    x, residual = (torch.randn(1, shape.tokens, width, device=device).to(dtype) for _ in range(2))
    weight = (torch.randn(width, width, device=device) / width**0.5).to(dtype)
    bias, gate = torch.randn(width, device=device).to(dtype), torch.randn(1, 1, width, device=device)
    return of(name, (x, weight, bias, gate, residual, "none"))


def of(name: str, args: Args) -> Workload:
    x, weight, bias, gate, residual, activation = args

    def part(results: Sequence[Tensor]) -> Sequence[Tensor]:
        return [result[..., :ROWS, :] for result in results]

    def exact() -> list[Tensor]:
        return [
            eager(x[..., :ROWS, :].double(), weight.double(), _wide(bias), _wide(gate), _wide(residual), activation)
        ]

    written = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return Workload(
        op="linear",
        shape=name,
        args=args,
        eager=eager,
        flops=2 * x.numel() * weight.shape[0],
        num_bytes=x.nbytes + weight.nbytes + written + (0 if residual is None else residual.nbytes),
        exact=exact,
        part=part,
        kind="matrix",
    )


def _wide(rows: Tensor | None) -> Tensor | None:
    """In float64, of each sample the rows that are checked; a bias and a shared gate have one."""
    if rows is None or rows.dim() < 2:
        return None if rows is None else rows.double()
    return rows[..., :ROWS, :].double()

"""gated_ada_norm: a gated branch joins the stream, and the norm before the next branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops import ada_norm
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def eager(x: Tensor, residual: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    stream = (residual.float() + x * gate).type_as(residual)
    return ada_norm.eager(stream, scale, shift, eps), stream


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    x, residual = (torch.randn(1, shape.tokens, shape.width, device=device).to(dtype) for _ in range(2))
    gate, scale, shift = (torch.randn(1, 1, shape.width, device=device) for _ in range(3))

    def exact() -> list[Tensor]:
        stream = residual.double() + x.double() * gate.double()
        normed = F.layer_norm(stream, stream.shape[-1:], eps=ada_norm.EPS)
        return [normed * (1 + scale.double()) + shift.double(), stream]

    return Workload(
        op="gated_ada_norm",
        shape=name,
        args=(x, residual, gate, scale, shift, ada_norm.EPS),
        eager=eager,
        flops=10 * x.numel(),
        num_bytes=4 * x.nbytes,
        exact=exact,
    )

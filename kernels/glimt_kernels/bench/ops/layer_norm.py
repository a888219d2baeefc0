"""layer_norm: the norm with weights before a cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload

EPS = 1e-6


def eager(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).type_as(x)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(dtype)
    weight, bias = (torch.randn(shape.width, device=device) for _ in range(2))
    return of(name, (x, weight, bias, EPS))


def of(name: str, args: Args) -> Workload:
    x, weight, bias, eps = args
    return Workload(
        op="layer_norm",
        shape=name,
        args=args,
        eager=eager,
        flops=8 * x.numel(),
        num_bytes=2 * x.nbytes,
        exact=lambda: [F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps)],
    )

"""rms_norm: the norm of the queries of a cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops.layer_norm import EPS
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload


def eager(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).type_as(x)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(dtype)
    weight = torch.randn(shape.width, device=device).to(dtype)
    return of(name, (x, weight, EPS))


def of(name: str, args: Args) -> Workload:
    x, weight, eps = args
    return Workload(
        op="rms_norm",
        shape=name,
        args=args,
        eager=eager,
        flops=4 * x.numel(),
        num_bytes=2 * x.nbytes,
        exact=lambda: [F.rms_norm(x.double(), x.shape[-1:], weight.double(), eps)],
    )

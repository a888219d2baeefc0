"""ada_norm: the norm before self-attention, one modulation for all tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload

EPS = 1e-6


def eager(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """As Diffusers' Wan block: the norm in float32, the modulation too, then back."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).type_as(x)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(dtype)
    scale, shift = (torch.randn(1, 1, shape.width, device=device) for _ in range(2))
    return of(name, (x, scale, shift, EPS))


def of(name: str, args: Args) -> Workload:
    x, scale, shift, eps = args
    return Workload(
        op="ada_norm",
        shape=name,
        args=args,
        eager=eager,
        flops=8 * x.numel(),
        num_bytes=2 * x.nbytes,
        exact=lambda: [F.layer_norm(x.double(), x.shape[-1:], eps=eps) * (1 + scale.double()) + shift.double()],
    )

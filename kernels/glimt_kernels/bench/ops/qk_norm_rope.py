"""qk_norm_rope: RMS norm of queries and keys over the full width, and rotary positions, as Wan has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload

EPS = 1e-6


def eager(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool,
    pairs: str,
    order: None = None,
) -> tuple[Tensor, Tensor]:
    """As Diffusers' Wan attention: RMS norm in the working dtype's own way, then the rotation in float32."""
    return _one(q, q_weight, cos, sin, eps), _one(k, k_weight, cos, sin, eps)


def _one(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    normed = F.rms_norm(x.flatten(2), (weight.shape[0],), weight, eps).view(x.shape)
    a, b = normed.to(cos.dtype).view(*normed.shape[:-1], -1, 2).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2).type_as(x)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    q, k = (torch.randn(1, shape.tokens, shape.heads, shape.head_dim, device=device).to(dtype) for _ in range(2))
    q_weight, k_weight = (1 + 0.1 * torch.randn(shape.width, device=device).to(dtype) for _ in range(2))
    angle = torch.randn(shape.tokens, shape.head_dim // 2, device=device)
    cos, sin = angle.cos(), angle.sin()
    return of(name, (q, k, q_weight, k_weight, cos, sin, EPS, False, "interleaved", None))


def of(name: str, args: Args) -> Workload:
    tensors, words = args[:6], args[6:]
    q = tensors[0]

    def exact() -> list[Tensor]:
        q, k, q_weight, k_weight, cos, sin = (t.double() for t in tensors)
        return list(eager(q, k, q_weight, k_weight, cos, sin, *words))

    return Workload(
        op="qk_norm_rope",
        shape=name,
        args=args,
        eager=eager,
        flops=20 * q.numel(),
        num_bytes=4 * q.nbytes,
        exact=exact,
    )

"""What ada_norm and gated_ada_norm mean: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def ada_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return (F.layer_norm(_widen(x), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


def gated_ada_norm(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    branch = _widen(x) if gate is None else _widen(x) * gate
    stream = (_widen(residual) + branch).to(residual.dtype)
    return ada_norm(stream, scale, shift, eps), stream

"""What ada_norm and gated_ada_norm mean: obvious PyTorch, any floating dtype, differentiable (the 8-bit forms not)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.eight_bit.reference import levels, scale_of


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return F.layer_norm(_widen(x), x.shape[-1:], eps=eps) * (1 + scale) + shift


def _stream(x: Tensor, residual: Tensor, gate: Tensor | None) -> Tensor:
    branch = _widen(x) if gate is None else _widen(x) * gate
    return (_widen(residual) + branch).to(residual.dtype)


def ada_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return _modulated(x, scale, shift, eps).to(x.dtype)


def gated_ada_norm(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    stream = _stream(x, residual, gate)
    return ada_norm(stream, scale, shift, eps), stream


def ada_norm_8bit(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    value = _modulated(x, scale, shift, eps)
    row_scale = scale_of(value.abs().amax(-1), dtype).float()
    return levels(value, row_scale[..., None], dtype), row_scale


def gated_ada_norm_8bit(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    stream = _stream(x, residual, gate)
    return *ada_norm_8bit(stream, scale, shift, eps, dtype), stream

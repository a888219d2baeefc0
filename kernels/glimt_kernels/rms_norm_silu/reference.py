"""What rms_norm_silu means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    normalized = F.normalize(wide, dim=-1, eps=eps) * x.shape[-1] ** 0.5 * gamma
    y = normalized if bias is None else normalized + bias
    return (F.silu(y) if silu else y).to(x.dtype)

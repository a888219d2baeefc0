"""What attention means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def attention_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = torch.einsum("bnhd,blhd->bhnl", _widen(q), _widen(k)) * scale
    if bias is not None:
        logits = logits + bias[:, None, None, :].to(logits.dtype)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])  # all masked: all zero
    out = torch.einsum("bhnl,blhd->bnhd", weights, _widen(v))
    return out.to(q.dtype), lse


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return attention_lse(q, k, v, scale, bias)[0]

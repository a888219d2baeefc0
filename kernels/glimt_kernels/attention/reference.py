"""What attention means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def softmax_lse(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax over the last axis, all zero where all of it is masked; the log of the sum).

    The weights come from the maximum: the log of the sum, rounded, would put its error at logits of thousands, 1e-4 and
    more, into every weight of a row.
    """
    lse = torch.logsumexp(logits, dim=-1)
    nothing = (lse == -torch.inf)[..., None]
    return torch.softmax(logits.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0), lse


def attention_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = torch.einsum("bnhd,blhd->bhnl", _widen(q), _widen(k)) * scale
    if bias is not None:
        logits = logits + bias[:, None, None, :].to(logits.dtype)
    weights, lse = softmax_lse(logits)
    out = torch.einsum("bhnl,blhd->bnhd", weights, _widen(v))
    return out.to(q.dtype), lse


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return attention_lse(q, k, v, scale, bias)[0]

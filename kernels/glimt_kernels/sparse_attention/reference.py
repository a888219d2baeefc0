"""What sparse_attention means: plain softmax attention under the boolean mask of the lists."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.attention.reference import softmax_lse
from glimt_kernels.sparse_attention.mask import dense_mask


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def token_mask(indptr: Tensor, indices: Tensor, lengths: Tensor | None, block: int, tokens: int, keys: int) -> Tensor:
    """[1 or B, 1 or heads, tokens, keys] bool: which keys each query sees."""
    blocks = dense_mask(indptr, indices, -(-keys // block))
    mask = blocks.repeat_interleave(block, 2)[:, :, :tokens].repeat_interleave(block, 3)[..., :keys]
    if lengths is None:
        return mask
    return mask & (torch.arange(block, device=lengths.device) < lengths[:, None]).flatten()


def sparse_attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    seen = token_mask(indptr, indices, lengths, block, q.shape[1], k.shape[1])
    logits = torch.einsum("bnhd,blhd->bhnl", _widen(q), _widen(k)) * scale
    logits = logits.masked_fill(~seen, -torch.inf)
    weights, lse = softmax_lse(logits)
    out = torch.einsum("bhnl,blhd->bnhd", weights, _widen(v))
    return out.to(q.dtype), lse


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
) -> Tensor:
    return sparse_attention_lse(q, k, v, indptr, indices, lengths, block, scale)[0]

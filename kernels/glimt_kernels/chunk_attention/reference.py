"""What chunk_attention means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather(cache: Tensor, spans: Sequence[int]) -> list[Tensor]:
    """The tokens of each span: ``spans`` is start, length, start, length, ..."""
    return [cache[:, start : start + n] for start, n in zip(spans[::2], spans[1::2], strict=True)]


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def chunk_attention(
    q: Tensor, sink_q: Tensor | None, k: Tensor, v: Tensor, spans: Sequence[int], scale: float
) -> Tensor:
    queries = [q if sink_q is None or i else sink_q for i in range(len(spans) // 2)]
    if not spans:
        return q * 0
    logits = torch.cat(
        [
            torch.einsum("bnhd,blhd->bhnl", _widen(mine), _widen(keys)) * scale
            for mine, keys in zip(queries, gather(k, spans), strict=True)
        ],
        dim=-1,
    )
    values = _widen(torch.cat(gather(v, spans), dim=1))
    return torch.einsum("bhnl,blhd->bnhd", torch.softmax(logits, dim=-1), values).to(q.dtype)

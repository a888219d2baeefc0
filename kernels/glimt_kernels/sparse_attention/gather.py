"""sparse_attention on a CPU: the listed keys of one block of queries are gathered and attended to, row after row."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.attention.call import dtype_of, into
from glimt_kernels.attention.reference import softmax_lse
from glimt_kernels.dispatch import Case
from glimt_kernels.sparse_attention.mask import check_lists
from glimt_kernels.triton_env import DTYPES


def _row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    counts: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """One block of queries, [B, n, heads, head_dim], whose lists are ``starts`` and ``counts`` [1 or B, 1 or heads]."""
    samples, tokens, heads, _ = q.shape
    longest = int(counts.max()) if counts.numel() else 0
    if longest == 0:
        return torch.zeros_like(q), q.new_full((samples, heads, tokens), -torch.inf, dtype=torch.float32)
    listed = torch.arange(longest)
    blocks = indices[(starts[..., None] + listed).clamp_max(indices.shape[0] - 1)].long()
    inside = torch.arange(block)
    place = blocks[..., None] * block + inside
    seen = (listed < counts[..., None])[..., None] & (place < k.shape[1])
    if lengths is not None:
        seen = seen & (inside < lengths[blocks][..., None])
    place = place.flatten(2).clamp_max(k.shape[1] - 1)
    at = torch.arange(samples)[:, None, None], place, torch.arange(heads)[:, None]
    logits = q.transpose(1, 2).float() @ k[at].float().mT * scale
    logits = logits.masked_fill(~seen.flatten(2)[:, :, None], -torch.inf)
    weights, lse = softmax_lse(logits)
    return (weights @ v[at].float()).transpose(1, 2).to(q.dtype), lse


def sparse_attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_lists(indptr, indices, lengths, block, -(-k.shape[1] // block))
    counts = indptr[..., 1:] - indptr[..., :-1]
    result = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    for row in range(counts.shape[2]):
        part = slice(row * block, (row + 1) * block)
        mine = indptr[..., row], counts[..., row], indices, lengths, block, scale
        result[:, part], lse[:, :, part] = _row(q[:, part], k, v, *mine)
    return (result if out is None else into(out, result)), lse


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    return sparse_attention_lse(q, k, v, indptr, indices, lengths, block, scale, out)[0]


def reasons(case: Case) -> list[str]:
    found = []
    if case.device != "cpu":
        found.append(f"it runs on a CPU, the tensors are on {case.device}")
    if dtype_of(case) not in DTYPES:
        found.append("it computes in float32, for float32, float16 and bfloat16")
    return found

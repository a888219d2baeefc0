"""qk_norm_rope on the CPU, float32 (cpu.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case
from glimt_kernels.native import cpu_float32_reasons, lib
from glimt_kernels.outputs import each, place

__all__ = ["qk_norm_rope", "reasons"]


def reasons(case: Case) -> list[str]:
    """``case.sizes``, where known: per_head, pairs of halves, angles of heads, an order."""
    per_head, half, table_heads, ordered = case.sizes or (0, 0, 0, 0)
    found = cpu_float32_reasons(case)
    if per_head:
        found.append("it normalizes over all heads of a token together, not over each head")
    if half:
        found.append("it turns neighbouring channels, not those half a head apart")
    if table_heads:
        found.append("it takes the same angles for all heads, cos and sin [N, head_dim / 2]")
    if ordered:
        found.append("it leaves tokens in their order")
    return found


def _rows(x: Tensor) -> Tensor:
    """``x`` itself if every token's heads lie together in memory, else a copy."""
    strides = x.stride()
    return x if strides[3] == 1 and strides[2] == x.shape[3] else x.contiguous()


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
    order: Tensor | None = None,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Of ``per_head``, ``pairs`` and ``order`` only the defaults: see :func:`reasons`."""
    q, k = _rows(q), _rows(k)
    q_weight, k_weight, cos, sin = q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(), sin.contiguous()
    q_out, k_out = (place(one, q.shape, q.dtype, q.device) for one in each(out, 2))
    q_strides, k_strides = q.stride(), k.stride()
    lib.qk_norm_rope(
        (q.data_ptr(), q_strides[0], q_strides[1], q_weight.data_ptr(), q_out.data_ptr()),
        (k.data_ptr(), k_strides[0], k_strides[1], k_weight.data_ptr(), k_out.data_ptr()),
        cos.data_ptr(),
        sin.data_ptr(),
        tuple(q.shape),
        eps,
        torch.get_num_threads(),
    )
    return q_out, k_out

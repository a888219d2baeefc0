"""qk_norm_rope on the CPU, float32 (cpu.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import lib

__all__ = ["qk_norm_rope", "reasons"]


def _rows(x: Tensor) -> Tensor:
    """``x`` itself if every token's heads lie together in memory, else a copy."""
    strides = x.stride()
    return x if strides[3] == 1 and strides[2] == x.shape[3] else x.contiguous()


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    q, k = _rows(q), _rows(k)
    q_weight, k_weight, cos, sin = q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(), sin.contiguous()
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k_out = torch.empty_like(k, memory_format=torch.contiguous_format)
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

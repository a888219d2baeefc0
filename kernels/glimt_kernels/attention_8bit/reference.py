"""What attention_8bit means: obvious PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.attention import reference as plain
from glimt_kernels.attention.call import into
from glimt_kernels.qk_norm_rope_8bit.reference import dequantize


def attention_8bit(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: Tensor | None,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    queries, keys = dequantize(q, q_scale, block), dequantize(k, k_scale, block)
    values = v.float() if v_scale is None else v.float() * v_scale[:, None]
    return into(out, plain.attention(queries, keys, values, scale, bias).to(dtype))

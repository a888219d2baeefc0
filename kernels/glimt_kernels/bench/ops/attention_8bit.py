"""attention_8bit: self-attention over queries, keys and values that have 8 bits already, as the norm before gives them.

With the quantization included it is the provider ``eight_bit`` of the op attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels import quantize_blocks, quantize_channels
from glimt_kernels.attention_8bit.api import preferred
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload
from glimt_kernels.dispatch import case_of
from glimt_kernels.qk_norm_rope_8bit.reference import dequantize

BLOCK, ROWS = 128, 64


def eager(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: None,
    dtype: torch.dtype,
) -> Tensor:
    """What one has without the op: back to the working dtype, and PyTorch's own attention."""
    wide = dequantize(q, q_scale, block), dequantize(k, k_scale, block), v if v_scale is None else _values(v, v_scale)
    query, key, value = (x.to(dtype).transpose(1, 2) for x in wide)
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)


def _values(v: Tensor, v_scale: Tensor) -> Tensor:
    return v.float() * v_scale[:, None]


def _some(x: Tensor) -> Tensor:
    """Rows from all over the sequence."""
    return x[:, torch.linspace(0, x.shape[1] - 1, min(ROWS, x.shape[1]), device=x.device).long()]


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    q, k, v = (torch.randn(size, device=device).to(dtype) for _ in range(3))
    qk, pv = preferred(case_of([q]).arch, dtype)
    queries = quantize_blocks(q, block=BLOCK, dtype=qk)
    keys = quantize_blocks(k, mean=k.mean(1), block=BLOCK, dtype=qk)
    values = quantize_channels(v) if pv == torch.float8_e4m3fn else (v, None)
    args = (*queries, *keys, *values, BLOCK, shape.head_dim**-0.5, None, dtype)

    def part(results: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_some(x) for x in results]

    def exact() -> Sequence[Tensor]:
        rows = _some(dequantize(*queries, BLOCK)).double()
        wide = dequantize(*keys, BLOCK).double(), (v if values[1] is None else _values(*values)).double()
        query, key, value = (x.transpose(1, 2) for x in (rows, *wide))
        return [F.scaled_dot_product_attention(query, key, value, scale=shape.head_dim**-0.5).transpose(1, 2)]

    return Workload(
        op="attention_8bit",
        shape=name,
        args=args,
        eager=eager,
        flops=4 * shape.tokens**2 * shape.width,
        num_bytes=sum(x.nbytes for x in args if isinstance(x, Tensor)) + q.nbytes,
        exact=exact,
        part=part,
        kind="matrix",
    )

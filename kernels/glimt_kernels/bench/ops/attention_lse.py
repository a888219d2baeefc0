"""attention_lse: attention that gives the log-sum-exp as well, over the text, where the part of it is largest."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.bench.ops import attention
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload, sample


def eager(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """PyTorch's attention keeps its log-sum-exp to itself; by its products, which fit for a text."""
    logits = torch.einsum("bnhd,blhd->bhnl", q, k) * scale
    if bias is not None:
        logits = logits + bias[:, None, None, :].to(q.dtype)
    return torch.einsum("bhnl,blhd->bnhd", torch.softmax(logits, -1), v).contiguous(), logits.float().logsumexp(-1)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    q, k, v = (attention.draw(n, shape, dtype, device) for n in (shape.tokens, shape.text, shape.text))
    scale = shape.head_dim**-0.5
    rows = sample(shape.tokens, device)
    return Workload(
        op="attention_lse",
        shape=name,
        args=(q, k, v, scale, None),
        eager=eager,
        flops=4 * shape.tokens * shape.text * shape.width,
        num_bytes=2 * q.nbytes + k.nbytes + v.nbytes + 4 * shape.tokens * shape.heads,
        exact=lambda: list(attention.exact(q[:, rows], k, v, scale, None)),
        part=lambda result: [result[0][:, rows], result[1][:, :, rows]],
        kind="matrix",
    )

"""chunk_attention: three new latent frames of a stream over a full cache whose ring has gone round, with a sink."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.bench.ops import attention
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload, sample

CHUNK_FRAMES, SINK_FRAMES = 3, 1


def eager(q: Tensor, sink_q: Tensor | None, k: Tensor, v: Tensor, spans: Sequence[int], scale: float) -> Tensor:
    """Keys and values gathered in order, then PyTorch's attention."""
    keys, values = (gather(x, spans) for x in (k, v))
    return attention.eager(q, keys, values, scale, None)


def gather(cache: Tensor, spans: Sequence[int]) -> Tensor:
    pieces = [cache[:, start : start + n] for start, n in zip(spans[::2], spans[1::2], strict=True)]
    return torch.cat(pieces, 1)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    frames, y, x = shape.grid
    frame = y * x
    sink, capacity = SINK_FRAMES * frame, frames * frame
    oldest = sink + (frames - SINK_FRAMES) // 2 * frame
    spans = [0, sink, oldest, capacity - oldest, sink, oldest - sink]
    q, k, v = (attention.draw(tokens, shape, dtype, device) for tokens in (CHUNK_FRAMES * frame, capacity, capacity))
    scale, rows = shape.head_dim**-0.5, sample(CHUNK_FRAMES * frame, device)
    return Workload(
        op="chunk_attention",
        shape=name,
        args=(q, None, k, v, spans, scale),
        eager=eager,
        flops=4 * q.shape[1] * capacity * shape.width,
        num_bytes=2 * q.nbytes + k.nbytes + v.nbytes,
        exact=lambda: [attention.exact(q[:, rows], gather(k, spans), gather(v, spans), scale, None)[0]],
        part=lambda result: [result[0][:, rows]],
        kind="matrix",
    )

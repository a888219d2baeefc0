"""chunk_attention: queries of a stream's newest chunk over a cache of keys and values, read where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.attention.call import into
from glimt_kernels.chunk_attention import reference, sdpa, triton
from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.triton_env import reluctance


def chunk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Sequence[tuple[int, int]],
    *,
    sink_q: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """``softmax(scale * q k^T) v`` in every head, over the tokens of ``spans`` alone, as one softmax.

    ``chunk_attention(q, ring.k, ring.v, ring.spans())`` with a :class:`KvRing`. Spans are numbers of the launch: a
    captured CUDA graph keeps those it was captured with.

    Args:
        q: [B, N, heads, head_dim] floating; any strides, head_dim not contiguous is copied first.
        k, v: [B, capacity, heads, head_dim], the cache, the dtype of q. Copied whole if head_dim is not contiguous.
        spans: up to three (start, length). Empty ones do not count. The order changes nothing but which is first.
        sink_q: like q; what the tokens of the first span are asked with instead, since rotary positions of a sink stay
            near those of the window (README.md).
        scale: positive; 1 / sqrt(head_dim) if None.
        out: [B, N, heads, head_dim] of q's dtype; written and returned instead of a new tensor.
        impl: "triton", "sdpa" or "reference" instead of the chosen implementation.

    Returns:
        [B, N, heads, head_dim], contiguous, the dtype of q; computed in float32 (float64 for float64). Zeros if no
        span holds a token.

    Raises:
        ValueError: shapes or dtypes do not fit, spans outside the cache or more than three, scale not positive.
        UnsupportedError: ``impl`` cannot run this call.

    Source: rolling caches with a sink as in arXiv:2309.17453, for video arXiv:2506.08009.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    held = [(start, length) for start, length in spans if length]
    _check(q, sink_q, k, v, held, scale, out)
    if sink_q is not None and (not spans or not spans[0][1]):
        sink_q = None  # it asks the first span, which is empty
    args = (q, sink_q, k, v, [number for span in held for number in span], scale)
    result: Tensor = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def _check(
    q: Tensor,
    sink_q: Tensor | None,
    k: Tensor,
    v: Tensor,
    spans: Sequence[tuple[int, int]],
    scale: float,
    out: Tensor | None,
) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"chunk_attention takes a positive scale; found {scale}")
    fits = q.dim() == k.dim() == 4 and v.shape == k.shape and k.shape == (q.shape[0], k.shape[1], *q.shape[2:])
    fits = fits and all(x is None or x.shape == q.shape for x in (sink_q, out))
    if not fits or not all(x is None or x.dtype == q.dtype for x in (k, v, sink_q, out)):
        named = {"q": q, "k": k, "v": v, "sink_q": sink_q, "out": out}
        raise ValueError(
            "chunk_attention takes q, sink_q and out [B, N, heads, head_dim] and k, v [B, capacity, heads, head_dim] "
            "of one dtype; found "
            + ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in named.items() if x is not None)
        )
    inside = all(start >= 0 and length > 0 and start + length <= k.shape[1] for start, length in spans)
    if len(spans) > triton.PIECES or not inside:
        raise ValueError(
            f"chunk_attention takes up to three spans (start, length) inside a cache of {k.shape[1]} tokens; "
            f"found {[tuple(span) for span in spans]}"
        )


def _fake(q: Tensor, sink_q: Tensor | None, k: Tensor, v: Tensor, spans: Sequence[int], scale: float) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _reference(
    q: Tensor,
    sink_q: Tensor | None,
    k: Tensor,
    v: Tensor,
    spans: Sequence[int],
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    return into(out, reference.chunk_attention(q, sink_q, k, v, spans, scale))


def _sizes(
    q: Tensor, sink_q: Tensor | None, k: Tensor, v: Tensor, spans: Sequence[int], scale: float
) -> tuple[int, ...]:
    return q.shape[3], int(sink_q is not None)


def _triton_reluctance(case: Case) -> list[str]:
    if case.device == "cuda" and case.dtype == torch.float32 and not sdpa.reasons(case):
        return ["in float32 PyTorch goes first: without TF32, which would not keep the budget, no matrix unit is used"]
    return reluctance(case)


OP = define(
    "chunk_attention",
    "(Tensor q, Tensor? sink_q, Tensor k, Tensor v, int[] spans, float scale) -> Tensor",
    [
        Candidate("chunk_attention", "triton", triton.chunk_attention, triton.reasons, _triton_reluctance),
        Candidate("chunk_attention", "sdpa", sdpa.chunk_attention, sdpa.reasons),
        Candidate("chunk_attention", "reference", _reference),
    ],
    _fake,
    sizes=_sizes,
)

"""chunk_attention and its ring: streaming equals masked attention, and what was evicted has no say."""

from __future__ import annotations

import math

import pytest
import torch
from budget import attention_of, check_budget, poison, random
from test_attention import inputs
from torch import Tensor

from glimt_kernels import KvRing, attention, chunk_attention
from glimt_kernels.chunk_attention import triton
from glimt_kernels.chunk_attention.api import OP
from glimt_kernels.chunk_attention.ring import Span
from glimt_kernels.dispatch import Case

SAMPLES, HEADS = 2, 2
IMPLS = ("triton", "sdpa", "reference")


def make(tokens: int, head_dim: int = 32, dtype: torch.dtype = torch.float16) -> list[Tensor]:
    return [random(SAMPLES, tokens, HEADS, head_dim, seed=seed).to(dtype) for seed in range(3)]


def on_chip(monkeypatch: pytest.MonkeyPatch, arch: int) -> None:
    real = triton.launch_shape
    monkeypatch.setattr(triton, "launch_shape", lambda _, *rest: real(arch, *rest))


def block_causal(chunks: list[int]) -> Tensor:
    """Which keys a token of each chunk may see: those of its own chunk and all before."""
    chunk = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor(chunks))
    return chunk[:, None] >= chunk[None, :]


def parts(x: Tensor, chunks: list[int]) -> tuple[Tensor, ...]:
    return x.split(chunks, dim=1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunks", [[7, 7, 7], [1, 13, 2, 31]])
def test_streaming_is_block_causal_attention_while_nothing_is_evicted(chunks: list[int], impl: str) -> None:
    q, k, v = make(sum(chunks))
    ring, found = KvRing.empty(SAMPLES, sum(chunks) + 3, HEADS, 32, sink=5, dtype=q.dtype), []
    for q_new, k_new, v_new in zip(*(parts(x, chunks) for x in (q, k, v)), strict=True):
        ring = ring.append(k_new, v_new)
        found.append(chunk_attention(q_new, ring.k, ring.v, ring.spans(), impl=impl))
    mask = block_causal(chunks)
    exact = attention_of(q.double(), k.double(), v.double(), mask=mask)
    check_budget(torch.cat(found, 1), attention_of(q, k, v, mask=mask), exact, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("capacity", "sink", "chunk"), [(16, 4, 4), (23, 5, 3), (20, 0, 7), (12, 2, 10), (9, 8, 1)])
def test_after_eviction_it_is_attention_over_sink_and_window(
    capacity: int, sink: int, chunk: int, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    tokens = 4 * capacity // chunk * chunk
    q, k, v = make(tokens)
    ring = KvRing.empty(SAMPLES, capacity, HEADS, 32, sink=sink, dtype=q.dtype)
    for end in range(chunk, tokens + 1, chunk):
        ring = ring.append(k[:, end - chunk : end], v[:, end - chunk : end])
        if end < 3 * capacity and end % (3 * chunk):
            continue  # a sample of the states is enough
        recent = max(sink, end - (capacity - sink)) if end > capacity else 0
        kept = [*range(min(sink, recent)), *range(recent, end)]
        last = q[:, end - chunk : end]
        found = chunk_attention(last, ring.k, ring.v, ring.spans(), impl=impl)
        exact = attention_of(last.double(), k[:, kept].double(), v[:, kept].double())
        check_budget(found, attention_of(last, k[:, kept], v[:, kept]), exact, f"after {end}")


def test_the_ring_holds_what_a_list_would() -> None:
    """Against a list of token numbers, for every chunk length that fits."""
    for capacity, sink in [(7, 0), (7, 3), (8, 7), (1, 0)]:
        for chunk in range(1, capacity - sink + 1):
            ring, stream = KvRing.empty(1, capacity, 1, 1, sink=sink), []
            for first in range(0, 5 * capacity, chunk):
                numbers = torch.arange(first, first + chunk).float()
                ring = ring.append(numbers.view(1, -1, 1, 1), -numbers.view(1, -1, 1, 1))
                stream += numbers.tolist()
                kept = stream if len(stream) <= capacity else stream[:sink] + stream[len(stream) - capacity + sink :]
                spans = ring.spans()
                held = torch.cat([ring.k[0, s : s + n, 0, 0] for s, n in spans])
                assert held.tolist() == kept
                assert torch.equal(ring.k, -ring.v)
                assert (ring.length, ring.seen) == (len(kept), len(stream))
                assert ring.evicted == len(stream) - len(kept)
                assert len(spans) <= 3
                assert not ring.evicted or not sink or spans[0] == Span(0, sink)


def test_a_state_is_a_value_and_a_chunk_may_be_appended_anew() -> None:
    """The steps of a chunk each append to the state before it; the last, clean, one counts."""
    ring = KvRing.empty(1, 6, 1, 8, sink=2)
    k = random(1, 20, 1, 8)
    for end in (4, 6, 8):
        ring = ring.append(k[:, end - 2 : end], k[:, end - 2 : end])
    noisy = ring.append(k[:, 10:12], k[:, 10:12])
    clean = ring.append(k[:, 8:10], k[:, 8:10])
    assert noisy == clean
    assert noisy.k is ring.k
    assert (ring.seen, clean.seen) == (6, 8)
    held = torch.cat([clean.k[:, s : s + n] for s, n in clean.spans()], 1)
    assert torch.equal(held[:, -2:], k[:, 8:10])


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions [N], pairs of neighbours."""
    angles = positions.double()[:, None] * 100.0 ** (-torch.arange(x.shape[3] // 2) / 3)
    turned = torch.view_as_complex(x.double().unflatten(3, (-1, 2))) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(3).to(x.dtype)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_positions_relative_to_the_cache(impl: str) -> None:
    """Keys stay turned by their place in the stream. The sink is asked with queries as many places earlier as were
    evicted: then every logit is as if positions counted the tokens of the cache."""
    q, k, v = (x.float() for x in make(60))
    ring, chunk = KvRing.empty(SAMPLES, 16, HEADS, 32, sink=4), 4
    dtype = torch.float16 if impl == "triton" else torch.float32
    ring = KvRing(ring.k.to(dtype), ring.v.to(dtype), ring.sink)
    for end in range(chunk, 61, chunk):
        place = torch.arange(end - chunk, end)
        ring = ring.append(rotated(k[:, place], place).to(dtype), v[:, place].to(dtype))
    q = q[:, -chunk:]
    at = torch.arange(60 - chunk, 60)
    found = chunk_attention(
        rotated(q, at).to(dtype),
        ring.k,
        ring.v,
        ring.spans(),
        sink_q=rotated(q, at - ring.evicted).to(dtype),
        impl=impl,
    )
    kept = [*range(4), *range(48, 60)]
    in_cache = torch.arange(16)
    expected = attention(rotated(q, in_cache[-chunk:]), rotated(k[:, kept], in_cache), v[:, kept], impl="reference")
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    plain = chunk_attention(rotated(q, at).to(dtype), ring.k, ring.v, ring.spans(), impl=impl)
    assert (plain - found).abs().max() > 10 * tolerance


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_each_way_through_the_pieces(arch: int, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans shorter and longer than a block, what lies between them NaN."""
    assert (triton.launch_shape(arch, torch.float16, head_dim).way == "plain") == (arch in (80, 120))
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    q, k, v = make(330, head_dim)
    q = q[:, :131]
    for spans in ([(0, 7), (200, 130), (20, 64)], [(3, 128)], [(0, 64), (150, 1)]):
        kept = [i for start, length in spans for i in range(start, start + length)]
        cache = [torch.full_like(x, math.nan) for x in (k, v)]
        for mine, x in zip(cache, (k, v), strict=True):
            mine[:, kept] = x[:, kept]
        found = chunk_attention(q, *cache, spans, impl="triton")
        exact = attention_of(q.double(), k[:, kept].double(), v[:, kept].double())
        check_budget(found, attention_of(q, k[:, kept], v[:, kept]), exact, str(spans))
        assert torch.equal(found, chunk_attention(q, *cache, spans, sink_q=q, impl="triton"))


def over_spans(q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """One softmax over all spans, the first asked with ``sink_q``; in the dtype of q."""
    logits = []
    for queries, (start, length) in zip((sink_q, *[q] * (len(spans) - 1)), spans, strict=True):
        keys = k[:, start : start + length]
        logits.append(torch.einsum("bnhd,blhd->bhnl", queries, keys) * q.shape[3] ** -0.5)
    values = torch.cat([v[:, start : start + length] for start, length in spans], 1)
    return torch.einsum("bhnl,blhd->bnhd", torch.cat(logits, 3).softmax(3), values)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "arch"),
    [
        *((torch.float32, head_dim, 80) for head_dim in (32, 64, 80, 128, 256)),
        *((torch.float16, head_dim, 80) for head_dim in (80, 208, 256)),
        (torch.float16, 256, 86),
    ],
    ids=str,
)
def test_every_dtype_and_head_size(
    dtype: torch.dtype, head_dim: int, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With queries of the sink's own, spans shorter and longer than a block, NaN between them."""
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    q, sink_q, k, v = (random(1, 97, 2, head_dim, seed=seed).to(dtype) for seed in range(4))
    q, sink_q = q[:, :19], sink_q[:, :19]
    spans = [(0, 7), (60, 37), (11, 31)]
    held = torch.cat([torch.arange(start, start + length) for start, length in spans])
    cache = [torch.full_like(x, math.nan).index_copy(1, held, x[:, held]) for x in (k, v)]
    found = chunk_attention(q, *cache, spans, sink_q=sink_q, impl="triton")
    exact = over_spans(*(x.double() for x in (q, sink_q, k, v)), spans)
    check_budget(found, over_spans(q, sink_q, k, v, spans), exact, f"{dtype} {head_dim}")


def test_who_runs_what_on_a_gpu() -> None:
    """In float32 PyTorch copies the spans, unless the sink has queries of its own; what Triton leaves, it says why."""
    for dtype, head_dim, sink, expected in (
        (torch.bfloat16, 128, 0, "triton"),
        (torch.bfloat16, 256, 1, "triton"),
        (torch.float32, 128, 0, "sdpa"),
        (torch.float32, 128, 1, "triton"),
        (torch.bfloat16, 72, 0, "sdpa"),
        (torch.bfloat16, 320, 1, "reference"),
    ):
        case = Case("cuda", dtype, arch=90, sizes=(head_dim, sink))
        chosen = next(c for c in OP.candidates if not c.reasons(case) and not c.reluctance(case))
        assert chosen.impl == expected, (dtype, head_dim, sink)
    reasons = [triton.reasons(Case("cuda", torch.float16, arch=90, sizes=(n, 0))) for n in (264, 33)]
    assert reasons[0] == ["it takes a head_dim of at most 256, found 264"]
    assert "steps of 16" in reasons[1][0] and len(reasons[1]) == 1


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", list(inputs(2, 2, 8, torch.float16)))
def test_adversarial_inputs(name: str, arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks, outlier channels, a large mean of the keys, denormals: in three pieces of a cache."""
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    q, k, v = inputs(5, 131, 64, torch.float16)[name]
    spans = [(0, 7), (61, 70), (7, 31)]
    kept = [i for start, length in spans for i in range(start, start + length)]
    exact = attention_of(q.double(), k[:, kept].double(), v[:, kept].double())
    check_budget(chunk_attention(q, k, v, spans, impl="triton"), attention_of(q, k[:, kept], v[:, kept]), exact, name)


@pytest.mark.parametrize("samples", [1, 3])
def test_any_number_of_samples(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = (random(samples, n, HEADS, 32, seed=seed).half() for seed, n in enumerate((5, 37, 37)))
    found = chunk_attention(q, k, v, [(0, 37)], impl="triton")
    check_budget(found, attention_of(q, k, v), attention_of(q.double(), k.double(), v.double()), f"{samples} samples")


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_cache_and_empty_spans(impl: str) -> None:
    q, k, v = make(7)
    assert torch.equal(chunk_attention(q, k, v, [], impl=impl), torch.zeros_like(q))
    assert torch.equal(chunk_attention(q, k, v, [(3, 0)], sink_q=q, impl=impl), torch.zeros_like(q))
    assert chunk_attention(q[:0], k[:0], v[:0], [(0, 7)], impl=impl).shape == (0, 7, HEADS, 32)
    assert chunk_attention(q[:, :0], k, v, [(0, 7)], impl=impl).shape == (SAMPLES, 0, HEADS, 32)
    found = chunk_attention(q, k, v, [(1, 0), (0, 7)], impl=impl)
    torch.testing.assert_close(found, attention(q, k, v, impl="reference"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_out_and_strides(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = random(SAMPLES, 19, 3, HEADS, 32).half().unbind(2)
    spans = [(0, 3), (11, 8)]
    expected = chunk_attention(q.contiguous(), k.contiguous(), v.contiguous(), spans, impl=impl)
    for out in (torch.empty_like(expected), torch.empty(SAMPLES, 32, 19, HEADS, dtype=q.dtype).permute(0, 2, 3, 1)):
        assert chunk_attention(q, k, v, spans, out=out, impl=impl) is out
        assert torch.equal(out, expected)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = make(7)
    for spans in ([(0, 8)], [(-1, 3)], [(2, -1)], [(0, 1)] * 4):
        with pytest.raises(ValueError, match="cache of 7 tokens"):
            chunk_attention(q, k, v, spans)
    with pytest.raises(ValueError, match=r"sink_q \[2, 3, 2, 32\]"):
        chunk_attention(q, k, v, [(0, 7)], sink_q=q[:, :3])
    with pytest.raises(ValueError, match="positive scale"):
        chunk_attention(q, k, v, [(0, 7)], scale=-1.0)
    ring = KvRing.empty(SAMPLES, 7, HEADS, 32, sink=3)
    with pytest.raises(ValueError, match="window of 4 tokens"):
        ring.append(*(x.float() for x in make(8)[:2]))
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 32\], \[2, 1, 2, 32\]"):
        ring.append(k[:, :2].float(), v[:, :1].float())
    with pytest.raises(ValueError, match="capacity of 7 tokens; found 7"):
        KvRing.empty(1, 7, 1, 1, sink=7)
    with pytest.raises(ValueError, match="capacity, heads"):
        KvRing(k, v[:, :2])

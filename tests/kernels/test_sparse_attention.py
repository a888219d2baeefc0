"""sparse_attention: attention under the mask that its lists mean; where they name all, the dense kernel bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from budget import HALVES, attention_of, check_budget, poison, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import glimt_kernels as kernels
from glimt_kernels import BlockMask, Tiling, attention, sparse_attention
from glimt_kernels.attention import triton as dense_triton
from glimt_kernels.count import Count
from glimt_kernels.sparse_attention import triton

SAMPLES, HEADS = 2, 2
IMPLS = ("triton", "gather", "reference")


def make(tokens: int, keys: int, head_dim: int = 32, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [random(SAMPLES, n, HEADS, head_dim, seed=i).to(dtype) for i, n in enumerate((tokens, keys, keys))]


def blocks(tokens: int, block: int) -> int:
    return -(-tokens // block)


def random_mask(
    tokens: int, keys: int, block: int, seed: int = 0, density: float = 0.6, samples: int = SAMPLES, heads: int = HEADS
) -> BlockMask:
    """Its first list is empty; its last names the last block."""
    shape = samples, heads, blocks(tokens, block), blocks(keys, block)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    chosen[-1, -1, -1, -1] = True
    chosen[0, 0, 0] = False
    return BlockMask.from_dense(chosen, block)


def seen_keys(mask: BlockMask, tokens: int, keys: int) -> Tensor:
    """[SAMPLES, HEADS, tokens, keys] bool, list after list and key after key."""
    seen = torch.zeros(SAMPLES, HEADS, tokens, keys, dtype=torch.bool)
    for b in range(SAMPLES):
        for h in range(HEADS):
            starts = mask.indptr[b % mask.indptr.shape[0], h % mask.indptr.shape[1]].tolist()
            for row in range(mask.rows):
                for col in mask.indices[starts[row] : starts[row + 1]].tolist():
                    length = mask.block if mask.lengths is None else int(mask.lengths[col])
                    first = col * mask.block
                    seen[b, h, row * mask.block : (row + 1) * mask.block, first : first + length] = True
    return seen


def check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, what: str, impl: str = "triton") -> None:
    seen = seen_keys(mask, q.shape[1], k.shape[1])[:, : q.shape[2]]
    exact = attention_of(q.double(), k.double(), v.double(), mask=seen)
    check_budget(sparse_attention(q, k, v, mask, impl=impl), attention_of(q, k, v, mask=seen), exact, what)


def on_chip(monkeypatch: pytest.MonkeyPatch, arch: int, block: int | None = None) -> None:
    """Launch as on another chip; the dense kernel too, with ``block`` in the tiles of that block."""
    real, real_dense = triton.launch_shape, dense_triton.tiles
    monkeypatch.setattr(triton, "launch_shape", lambda _, *rest: real(arch, *rest))

    def tiles(_: int, dtype: torch.dtype, head_dim: int, describable: bool = True) -> Any:
        if block is None:
            return real_dense(arch, dtype, head_dim, describable)
        return real(arch, dtype, head_dim, block, False, describable)

    monkeypatch.setattr(dense_triton, "tiles", tiles)


# Queries and keys: a 1, primes, beside and at a multiple of the blocks.
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tokens", "keys", "block"), [(1, 1, 64), (131, 67, 64), (67, 199, 64), (129, 256, 128)])
def test_triton_within_budget(
    tokens: int, keys: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    check(*make(tokens, keys, 64, dtype), random_mask(tokens, keys, block), f"{tokens} x {keys}")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["sink", "outlier", "k mean", "denormals", "zeros"])
def test_within_budget_of_adversarial_inputs(name: str, impl: str, dtype: torch.dtype) -> None:
    q, k, v = make(67, 150, 32, dtype)
    if name == "sink":
        k[:, 0] = q.mean(1) * 30  # one key takes nearly everything of those who see its block
    elif name == "outlier":
        q[..., 3] *= 100
        k[..., 3] *= 100
        v[..., 5] *= 1000
    elif name == "k mean":
        k += 50
    else:
        q, k, v = (x * (1e-6 if name == "denormals" else 0) for x in (q, k, v))
    check(q, k, v, random_mask(67, 150, 64, seed=3), name, impl)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(("head_dim", "block"), [(64, 64), (64, 128), (128, 64), (128, 128)])
def test_each_way_along_the_lists(arch: int, head_dim: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks and the ragged last one, then blocks that have lengths."""
    ways = {80: "halves" if (head_dim, block) == (128, 64) else "plain", 90: "values behind", 100: "logits ahead"}
    for ragged in (False, True):
        assert triton.launch_shape(arch, torch.float16, head_dim, block, ragged).way == ways[arch]
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    q, k, v = make(block + 3, 4 * block, head_dim, torch.float16)
    lengths = torch.tensor([block, 1, block // 2 + 5, block // 2], dtype=torch.int32)
    q, k, v = (x[:, :, :1] for x in (q, k, v))
    mask = random_mask(block + 3, 4 * block, block, seed=arch, heads=1)
    check(q, k[:, : 3 * block + 9], v[:, : 3 * block + 9], mask, "ragged end")
    check(q, k, v, BlockMask(mask.indptr, mask.indices, block, 4, lengths), "lengths")


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_mask_of_ones_is_the_dense_kernel_bit_for_bit(
    arch: int, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel as it is launched; for blocks of 64 where it has tiles of more keys, with tiles of 64.

    The interpreter leaves products to NumPy's library, which on some processors sums in another order where a tile lies
    otherwise in memory; products are therefore taken in float64 and rounded once.
    """
    real = np.matmul

    def rounded_once(a: Any, b: Any, dtype: Any = None) -> Any:
        return real(a.astype(np.float64), b.astype(np.float64)).astype(dtype or np.result_type(a, b))

    monkeypatch.setattr(np, "matmul", rounded_once)
    as_launched = dense_triton.tiles(arch, torch.float16, head_dim)
    for block, keys in [(128, 128), (128, 307), (64, 190)]:
        on_chip(monkeypatch, arch, None if as_launched.keys <= block else block)
        q, k, v = (x[:, :, :1] for x in make(block + 1, keys, head_dim, torch.float16))
        ones = torch.ones(1, 1, 2, blocks(keys, block), dtype=torch.bool)
        mask = BlockMask.from_dense(ones, block)
        assert mask.density == 1
        mine = sparse_attention(q, k, v, mask, return_lse=True, impl="triton")
        theirs = attention(q, k, v, return_lse=True, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), (block, keys)


@pytest.mark.parametrize("head_dim", [8, 40, 96, 256])
def test_triton_pads_any_head_dim(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    check(*make(5, 150, head_dim, torch.float16), random_mask(5, 150, 64, seed=4), f"head_dim {head_dim}")


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 140),
    keys=st.integers(1, 140),
    block=st.sampled_from([64, 128]),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    shared=st.tuples(st.booleans(), st.booleans()),
    ragged=st.booleans(),
)
def test_any_lists_are_masked_attention(
    tokens: int, keys: int, block: int, seed: int, density: float, shared: tuple[bool, bool], ragged: bool
) -> None:
    keys = blocks(keys, block) * block if ragged else keys
    q, k, v = make(tokens, keys, 8)
    one_or = [1 if alone else n for alone, n in zip(shared, (SAMPLES, HEADS), strict=True)]
    mask = random_mask(tokens, keys, block, seed, density, *one_or)
    if ragged:
        lengths = torch.randint(1, block + 1, (mask.cols,), generator=torch.Generator().manual_seed(seed)).int()
        mask = BlockMask(mask.indptr, mask.indices, block, mask.cols, lengths)
    seen = seen_keys(mask.check(), tokens, keys)
    exact = attention_of(q.double(), k.double(), v.double(), mask=seen)
    for impl in ("gather", "reference"):
        found = sparse_attention(q, k, v, mask, impl=impl)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_lists_give_zeros_and_minus_infinity(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(130, 70)
    mask = random_mask(130, 70, 64)
    seen = seen_keys(mask, 130, 70).any(3)
    assert 0 < seen.sum() < seen.numel()
    out, lse = sparse_attention(q, k, v, mask, return_lse=True, impl=impl)
    assert torch.equal(lse == -math.inf, ~seen)
    assert torch.equal((out != 0).all(3), seen.transpose(1, 2))
    nothing = BlockMask.from_dense(torch.zeros(1, 1, 3, 2, dtype=torch.bool), 64)
    out, lse = sparse_attention(q, k, v, nothing, return_lse=True, impl=impl)
    assert torch.equal(out, torch.zeros_like(q))
    assert (lse == -math.inf).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_where_it_is_listed_and_nowhere_else(bad: float, impl: str) -> None:
    q, k, v = make(130, 190)
    mask = random_mask(130, 190, 64)
    k[0, 70, 1, 3] = bad
    spoiled = torch.zeros(SAMPLES, 130, HEADS, dtype=torch.bool)
    spoiled[0, :, 1] = seen_keys(mask, 130, 190)[0, 1, :, 70]
    assert 0 < spoiled.sum() < 130
    if bad == math.inf:  # minus infinity is a key that nothing sees
        spoiled &= q[..., 3] > 0
    found = sparse_attention(q, k, v, mask, impl=impl)
    assert torch.equal(found.isfinite().all(3), ~spoiled)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_log_of_the_sum_joins_parts_of_a_mask(impl: str) -> None:
    q, k, v = (x[:, :, :1] for x in make(67, 250))
    whole = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    odd = torch.tensor([False, True, False, True]).expand_as(whole)
    exact = attention(q.double(), k.double(), v.double(), return_lse=True)
    parts = [
        sparse_attention(q, k, v, BlockMask.from_dense(part, 64), return_lse=True, impl=impl) for part in (odd, ~odd)
    ]
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    joined = sum(out * (part - lse).exp().transpose(1, 2)[..., None] for out, part in parts)
    torch.testing.assert_close(joined.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_places_have_no_say(impl: str) -> None:
    tiling = Tiling((2, 5, 7), (2, 4, 4), 64)
    q, k, v = (tiling.to_tiles(x) for x in make(tiling.tokens, tiling.tokens, 32, torch.float16))
    mask = kernels.sliding_tile(tiling, (1, 2, 1))
    expected = sparse_attention(q, k, v, mask, impl=impl)
    empty = tiling.order() < 0
    k[:, empty], v[:, empty] = 1e4, -1e4
    assert torch.equal(sparse_attention(q, k, v, mask, impl=impl), expected)


@pytest.mark.parametrize("impl", ["triton", "gather"])
def test_all_tiles_are_dense_attention_in_another_order(impl: str) -> None:
    tiling = Tiling((2, 5, 9), (2, 4, 8), 64)
    q, k, v = make(tiling.tokens, tiling.tokens, 32, torch.float16)
    mask = kernels.sliding_tile(tiling, tiling.tiles)
    found = tiling.from_tiles(sparse_attention(*map(tiling.to_tiles, (q, k, v)), mask, impl=impl))
    torch.testing.assert_close(found, attention(q, k, v, impl="reference"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_out_and_strides(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = random(SAMPLES, 67, 3, HEADS, 32).unbind(2)  # slices of a fused projection
    mask = random_mask(67, 67, 64, seed=2)
    expected = sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), mask, impl=impl)
    assert torch.equal(sparse_attention(q, k, v.mT.contiguous().mT, mask, impl=impl), expected)
    for out in (torch.empty_like(expected), torch.empty(SAMPLES, 32, 67, HEADS).permute(0, 2, 3, 1)):
        assert sparse_attention(q, k, v, mask, out=out, impl=impl) is out
        assert torch.equal(out, expected)
    assert sparse_attention(q[:0], k[:0], v[:0], kernels.BlockMask.from_dense(mask.dense()[:1, :1], 64)).numel() == 0


def test_a_gradient_reaches_queries_keys_and_values() -> None:
    q, k, v = (x.double().requires_grad_() for x in make(66, 70, 2))
    mask = random_mask(66, 70, 64, seed=1)
    assert not seen_keys(mask, 66, 70).any(3).all()
    assert torch.autograd.gradcheck(
        lambda *args: sparse_attention(*args, mask, return_lse=False), (q, k, v), fast_mode=True
    )


@pytest.mark.parametrize("tiling", [Tiling((4, 8, 6), (4, 4, 2), 64), Tiling((3, 5, 7), (2, 3, 4), 64)], ids=str)
def test_tile_order(tiling: Tiling) -> None:
    order, places = kernels.tile_order(tiling.grid, tiling.tile, tiling.block)
    filled = order[order >= 0].long()
    assert torch.equal(filled.sort().values, torch.arange(tiling.tokens))
    assert torch.equal(order[places], torch.arange(tiling.tokens, dtype=torch.int32))
    x = random(2, tiling.tokens, 3)
    assert torch.equal(tiling.from_tiles(tiling.to_tiles(x)), x)
    assert tiling.to_tiles(x)[:, order < 0].abs().sum() == 0
    at = torch.stack(torch.unravel_index(filled, tiling.grid), 1) // torch.tensor(tiling.tile)
    block = torch.arange(tiling.places)[order >= 0] // tiling.block
    assert torch.equal(block, (at @ torch.tensor([tiling.tiles[1] * tiling.tiles[2], tiling.tiles[2], 1])))
    inside = order.view(-1, tiling.block) >= 0
    assert torch.equal(inside.sum(1), tiling.lengths().long())
    assert torch.equal(inside, torch.arange(tiling.block) < tiling.lengths()[:, None])  # tokens come first


def test_the_producers_write_tile_order() -> None:
    tiling = Tiling((3, 3, 5), (2, 3, 4), 64)
    q, k = make(tiling.tokens, tiling.tokens, 8)[:2]
    theta, weight = random(tiling.tokens, 4, seed=5), torch.ones(16)
    rope = weight, weight, theta.cos(), theta.sin(), 1e-6
    turned = [tiling.to_tiles(x) for x in kernels.qk_norm_rope(q, k, *rope)]
    for mine, theirs in zip(kernels.qk_norm_rope(q, k, *rope, order=tiling.order()), turned, strict=True):
        torch.testing.assert_close(mine, theirs)
    levels = kernels.qk_norm_rope_8bit(q, k, *rope, block=64, order=tiling.order())
    for (level, scale), exact in zip((levels[:2], levels[2:]), turned, strict=True):
        step = scale.transpose(1, 2).repeat_interleave(64, 1)[..., None]
        assert ((level * step - exact).abs() <= 0.51 * step).all()


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)
def test_sliding_tile(grid: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    tiling = Tiling(grid, (2, 3, 2), 64)
    mask = kernels.sliding_tile(tiling, window).check()
    seen = mask.dense()[0, 0]
    kept = [min(size, count) for size, count in zip(window, tiling.tiles, strict=True)]
    assert (seen.sum(1) == math.prod(kept)).all()
    assert seen.diagonal().all()
    assert mask.density == pytest.approx(math.prod(kept) / tiling.blocks)
    box = seen.view(*tiling.tiles, *tiling.tiles)
    if all(size % 2 or size >= count for size, count in zip(window, tiling.tiles, strict=True)):
        assert torch.equal(box, box.flip(*range(6)))  # the video turned around sees the same
    wider = kernels.sliding_tile(tiling, (window[0] + 2, window[1], window[2])).dense()[0, 0]
    assert (wider | ~seen).all()
    middle = [count // 2 for count in tiling.tiles]
    away = [(torch.arange(n) - m).abs() for n, m in zip(tiling.tiles, middle, strict=True)]
    if all(
        size % 2 and m >= size // 2 and n - m > size // 2
        for size, m, n in zip(window, middle, tiling.tiles, strict=True)
    ):
        expected = torch.ones(tiling.tiles, dtype=torch.bool)
        for axis, (distance, size) in enumerate(zip(away, window, strict=True)):
            expected &= (distance <= size // 2).view([-1 if i == axis else 1 for i in range(3)])
        assert torch.equal(box[tuple(middle)], expected)


def test_radial() -> None:
    """Against its formula, frame by frame; and what it promises: symmetry, itself, and less the further away."""
    tiling = Tiling((19, 4, 6), (1, 4, 2), 64)
    for width in (0.4, 1.0, 2.0):
        seen = kernels.radial(tiling, width=width, sink=False).check().dense()[0, 0].view(19, 3, 19, 3)
        for a in range(19):
            for b in range(19):
                halved = width * 3 / 2 ** int(math.log2(max(abs(a - b), 1)))
                for i in range(3):
                    for j in range(3):
                        thin = halved < 1 and i == j and abs(a - b) % math.ceil(1 / halved) == 0
                        assert seen[a, i, b, j] == (abs(i - j) + 1 <= halved or thin)
        assert torch.equal(seen, seen.permute(2, 3, 0, 1))
        with_sink = kernels.radial(tiling, width=width).dense()[0, 0].view(19, 3, 19, 3)
        assert with_sink[:, :, 0].all()
        assert torch.equal(with_sink[:, :, 1:], seen[:, :, 1:])
    coarse = Tiling((16, 16, 16), (2, 4, 8), 64)
    seen = kernels.radial(coarse, sink=False).dense()[0, 0].view(8, 8, 8, 8)
    counts = [int(seen[0, :, d].sum()) for d in range(8)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 64 > counts[-1]
    assert seen.view(64, 64).diagonal().all()


def test_top_k() -> None:
    q, k, _ = make(150, 263, 16)
    means = [kernels.block_means(x, 64) for x in (q, k)]
    for mean, x in zip(means, (q, k), strict=True):
        expected = torch.stack([part.double().mean(1) for part in x.split(64, 1)], 2)
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)
    scores = means[0] @ means[1].mT
    for keep in (1, 3, 5):
        mask = kernels.top_k(*means, keep, 64).check()
        seen = mask.dense()
        assert (seen.sum(3) == keep).all()
        assert seen.gather(3, scores.argmax(3, keepdim=True)).all()
        assert (scores.masked_fill(~seen, math.inf).amin(3) >= scores.masked_fill(seen, -math.inf).amax(3)).all()
        assert mask.density == keep / 5
    check(q, k, k, mask, "top_k", "gather")


def test_block_means_of_blocks_with_lengths() -> None:
    tiling = Tiling((3, 5, 7), (2, 3, 4), 64)
    x = random(2, tiling.tokens, 3, 8)
    found = kernels.block_means(tiling.to_tiles(x), 64, tiling.lengths())
    order = tiling.order().view(-1, 64)
    expected = torch.stack([x[:, row[row >= 0].long()].double().mean(1) for row in order], 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    some = kernels.block_means(tiling.to_tiles(x), 64, tiling.lengths(), every=5)
    expected = torch.stack([x[:, row[row >= 0][::5].long()].double().mean(1) for row in order], 2)
    torch.testing.assert_close(some.double(), expected, rtol=1e-5, atol=1e-6)


def test_means_of_some_tokens_of_each_block() -> None:
    x = random(2, 150, 3, 8)
    found = kernels.block_means(x, 64, every=3)
    expected = torch.stack([part[:, ::3].double().mean(1) for part in x.split(64, 1)], 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="every >= 1; found 0"):
        kernels.block_means(x, 64, every=0)


def field(grid: tuple[int, int, int], seed: int) -> Tensor:
    """Tokens [1, N, 2, 64] that change smoothly over the video, four tokens long, with a fifth of noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.arange(n, dtype=torch.float32) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
    waves = places @ torch.randn(3, 128, generator=generator) / 4 + 2 * math.pi * torch.rand(128, generator=generator)
    noise = torch.randn(waves.shape, generator=generator)
    return (math.sqrt(1.6) * waves.cos() + math.sqrt(0.2) * noise).view(1, -1, 2, 64)


SOME = [((3, 5, 4), 64, 7), ((3, 10, 4), 128, 3)]  # tile, block, and which of its tokens stand for it


@pytest.mark.parametrize(("tile", "block", "every"), SOME)
def test_some_tokens_choose_as_well_as_all(tile: tuple[int, int, int], block: int, every: int) -> None:
    """By the attention that falls on the chosen blocks; on tokens drawn as smooth as those of a video are."""
    tiling = Tiling((6, 20, 16), tile, block)
    q, k = (tiling.to_tiles(field(tiling.grid, 0) + 0.5 * field(tiling.grid, seed)) for seed in (1, 2))
    filled = tiling.order() >= 0
    logits = torch.einsum("bnhd,bmhd->bhnm", q[:, filled], k[:, filled]) / 8
    block_of = torch.arange(tiling.places)[filled] // block
    where = torch.nn.functional.one_hot(block_of, tiling.blocks).float()
    attention = where.T @ logits.softmax(-1) @ where  # between blocks

    def caught(every: int) -> float:
        means = [kernels.block_means(x, block, tiling.lengths(), every=every) for x in (q, k)]
        return float(attention[kernels.top_k(*means, tiling.blocks // 6, block).dense()].sum())

    best = float(attention.topk(tiling.blocks // 6).values.sum())
    assert 0.98 * best < caught(1) <= best * (1 + 1e-5)
    assert caught(every) > 0.985 * caught(1)


def test_top_k_never_waits_for_the_device() -> None:
    """On meta tensors there is nothing to wait for, and asking for a number is an error."""
    q, k = (torch.empty(1, 5 * 64, 2, 8, device="meta") for _ in range(2))
    mask = kernels.top_k(kernels.block_means(q, 64), kernels.block_means(k, 64), 2, 64)
    assert (mask.density, mask.rows, mask.indices.shape) == (0.4, 5, (2 * 5 * 2,))
    assert sparse_attention(q, k, k, mask).shape == q.shape


# A chip's rates, of which only the ratios matter: matrix products in bf16 and float32, FLOP/s, and bytes/s (H200).
MATRIX, FLOAT32, BANDWIDTH = 790e12, 60e12, 4.3e12


def shares(grid: tuple[int, int, int], tile: tuple[int, int, int], block: int, every: int) -> tuple[float, float]:
    """What the means of q and k, and what top_k of a tenth of the blocks, cost of their attention; 12 heads of 128."""
    tiling = Tiling(grid, tile, block)
    q = torch.empty(1, tiling.places, 12, 128, dtype=torch.bfloat16, device="meta")
    lengths = torch.empty(tiling.blocks, dtype=torch.int32, device="meta")
    with Count() as pooling:
        means = [kernels.block_means(q, block, lengths, every=every) for _ in range(2)]
    with Count() as choosing:
        mask = kernels.top_k(*means, round(0.1 * tiling.blocks), block, lengths=lengths)
    attended = 4 * tiling.places**2 * 12 * 128 * mask.density / MATRIX
    scores = 2 * tiling.blocks**2 * 12 * 128 / FLOAT32
    pooled, chosen = (count.traffic_bytes() / BANDWIDTH for count in (pooling, choosing))
    return pooled / attended, (chosen + scores) / attended


@pytest.mark.parametrize("grid", [(21, 30, 52), (21, 45, 80)])
@pytest.mark.parametrize(("tile", "block", "every"), SOME)
def test_top_k_costs_little_beside_its_attention(
    grid: tuple[int, int, int], tile: tuple[int, int, int], block: int, every: int
) -> None:
    """By bytes and FLOPs at most 5 %, with the means of some tokens; at 480p those of all would be too dear."""
    assert sum(shares(grid, tile, block, every)) < 0.05


def test_masks_that_are_built_once_are_small() -> None:
    """What has to reach the device, over PCIe at 20 GB/s, takes less than 5 % of one attention."""
    tiling = Tiling((21, 30, 52), (3, 5, 4), 64)
    for mask in (kernels.sliding_tile(tiling, (5, 3, 3)), kernels.radial(tiling, width=0.5)):
        assert 0.05 < mask.density < 0.5
        attended = 4 * tiling.places**2 * 12 * 128 * mask.density / MATRIX
        assert 4 * (mask.indptr.numel() + mask.indices.numel()) / 20e9 < 0.05 * attended


def test_wrong_lists_are_named_all_at_once() -> None:
    indptr = torch.tensor([[[0, 2, 1, 4]]], dtype=torch.int32)
    indices, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([1, 1, 5, -2], [64, 0, 64]))
    mask = BlockMask(indptr, indices, 64, 3, lengths)
    with pytest.raises(
        ValueError, match=r"rise from 0 to the 4 entries.*blocks 0 to 2; found -2 to 5.*entry 3.*1 to 64"
    ):
        mask.check()
    q, k, v = make(150, 3 * 64)
    for impl in ("triton", "gather"):
        with pytest.raises(ValueError, match="must ascend"):
            sparse_attention(q, k, v, mask, impl=impl)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = make(100, 130, 16)
    mask = random_mask(100, 130, 64)
    ragged = BlockMask(mask.indptr, mask.indices, 64, 3, torch.full((3,), 7, dtype=torch.int32))
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"k \[2, 130, 1, 16\]", {"k": k[:, :, :1]}),
        (r"v \[2, 4, 2, 16\]", {"v": v[:, :4]}),
        (r"k \[2, 130, 2, 16\] torch.float16", {"k": k.half()}),
        (r"out \[2, 130, 2, 16\]", {"out": torch.zeros_like(k)}),
        (r"positive scale; found 0.0; .*q \[2, 100, 2\]", {"scale": 0.0, "q": q[..., 0]}),
        ("2 x 3 blocks of 64, 200 queries and 130 keys are 4 x 3", {"q": q.repeat(1, 2, 1, 1)}),
        ("whole blocks of 64; found 130", {"mask": ragged}),
        (
            "2 samples and 2 heads, 1 standing for all; q has 3 and 2",
            {name: x[:1].expand(3, -1, -1, -1) for name, x in (("q", q), ("k", k), ("v", v))},
        ),
    ]
    for match, changed in wrong:
        with pytest.raises(ValueError, match=match):
            sparse_attention(**{"q": q, "k": k, "v": v, "mask": mask, **changed})
    with pytest.raises(ValueError, match=r"torch\.int64"):
        BlockMask(mask.indptr, mask.indices.long(), 64, 3)
    with pytest.raises(ValueError, match="block 32"):
        BlockMask(mask.indptr, mask.indices, 32, 3)
    with pytest.raises(ValueError, match=r"tile \(4, 4, 5\), block 64"):
        Tiling((8, 8, 8), (4, 4, 5), 64)
    with pytest.raises(ValueError, match="at least one tile"):
        kernels.sliding_tile(Tiling((8, 8, 8), (4, 4, 4), 64), (1, 0, 1))
    with pytest.raises(ValueError, match="positive width"):
        kernels.radial(Tiling((8, 8, 8), (4, 4, 4), 64), width=0.0)
    with pytest.raises(ValueError, match="keep 4"):
        kernels.top_k(*(kernels.block_means(x, 64) for x in (q, k)), 4, 64)
    with pytest.raises(kernels.UnsupportedError, match="at most 256, found 264"):
        sparse_attention(*make(100, 130, 264), mask, impl="triton")


def test_each_launch_shape_is_built() -> None:
    built = {(b.archs[0], b.case) for b in triton.BUILDS}
    for arch in (80, 86, 89, 90, 100, 120):
        for head_dim in (64, 128):
            for block in (64, 128):
                for dtype, ending in (("bf16", ""), ("bf16", ", lengths"), ("fp16", ", lengths")):
                    assert (arch, f"{dtype} {head_dim} block {block}{ending}") in built

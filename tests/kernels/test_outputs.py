"""Outputs that are given: the same values, in the very tensors, however they lie; what cannot hold them is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import random
from torch import Tensor

import glimt_kernels as kernels
from glimt_kernels import dispatch, outputs
from glimt_kernels.triton_env import ABSENT

Call = Callable[..., Any]


def calls() -> dict[str, tuple[Call, str]]:
    """By name: a function of ``out`` and ``impl`` (and of what to put in the place of the first input), and the op that
    it calls. Every public function that gives tensors of an op."""
    x, m, many = random(2, 5, 16), random(2, 1, 16, seed=2), random(2, 6, 16)
    q, k, v = (random(2, 6, 2, 16, seed=seed) for seed in range(3))
    weight, angles = random(32), random(6, 8, seed=9)
    rope = (weight, weight.flip(0), angles.cos(), angles.sin(), 1e-6)
    quantized = kernels.quantize_weight(random(8, 16), "int8")
    data, scales = kernels.quantize_rows(x, "int8")
    bias, residual = random(8), random(2, 5, 8, seed=1)
    gates = random(2, 3, 8, seed=4)
    pixels = random(1, 3, 2, 4, 6)
    keys = random(2, 128, 1, 8, seed=3)
    indptr, indices, lengths = (torch.tensor(t, dtype=torch.int32) for t in ([[[0, 2]]], [0, 1], [64, 5]))
    mask = kernels.BlockMask(indptr, indices, 64, 2, lengths)
    levels = [part for t in (q, k) for part in kernels.quantize_blocks(t)]
    few = random(2, 5, 1, 8)
    return {
        "ada_norm": (lambda x=x, **o: kernels.ada_norm(x, m, m.neg(), 1e-6, **o), "ada_norm"),
        "ada_norm after a branch": (
            lambda x=x, **o: kernels.ada_norm(x, m, m.neg(), 1e-6, m, x.flip(1), **o),
            "gated_ada_norm",
        ),
        "gated_ada_norm": (
            lambda x=x, **o: kernels.gated_ada_norm(x, x.flip(1), m, m.neg(), m, 1e-6, **o),
            "gated_ada_norm",
        ),
        "ada_norm_8bit": (lambda x=x, **o: kernels.ada_norm_8bit(x, m, m.neg(), 1e-6, **o), "ada_norm_8bit"),
        "gated_ada_norm_8bit": (
            lambda x=x, **o: kernels.gated_ada_norm_8bit(x, x.flip(1), m, m.neg(), m, 1e-6, **o),
            "gated_ada_norm_8bit",
        ),
        "layer_norm": (lambda x=x, **o: kernels.layer_norm(x, random(16), random(16, seed=1), 1e-6, **o), "layer_norm"),
        "rms_norm": (lambda x=x, **o: kernels.rms_norm(x, random(16), 1e-6, **o), "rms_norm"),
        "rms_norm_silu": (lambda x=x, **o: kernels.rms_norm_silu(x, random(16), **o), "rms_norm_silu"),
        "qk_norm_rope": (lambda x=q, **o: kernels.qk_norm_rope(x, k, *rope, **o), "qk_norm_rope"),
        "qk_norm_rope_8bit": (lambda x=q, **o: kernels.qk_norm_rope_8bit(x, k, *rope, **o), "qk_norm_rope_8bit"),
        "quantize_blocks": (lambda x=q, **o: kernels.quantize_blocks(x, **o), "quantize_blocks"),
        "quantize_channels": (lambda x=q, **o: kernels.quantize_channels(x, **o), "quantize_channels"),
        "quantize_rows": (lambda x=x, **o: kernels.quantize_rows(x, "int8", **o), "quantize_rows"),
        "linear": (lambda x=x, **o: kernels.linear(x, random(8, 16), bias, residual=residual, **o), "linear"),
        "linear with gates of groups": (
            lambda x=many, **o: kernels.linear(
                x, random(8, 16), bias, gate=gates, residual=random(2, 6, 8, seed=1), **o
            ),
            "linear",
        ),
        "linear_w8": (
            lambda x=x, **o: kernels.linear_w8(x, quantized.data, quantized.scales, bias, **o),
            "linear_w8",
        ),
        "linear_w8a8": (
            lambda x=data, **o: kernels.linear_w8a8(x, scales, quantized.data, quantized.scales, bias, **o),
            "linear_w8a8",
        ),
        "linear_quant": (lambda x=x, **o: kernels.linear_quant(x, quantized, bias, **o), "linear_w8a8"),
        "linear_quant of the weight": (
            lambda x=x, **o: kernels.linear_quant(x, quantized, bias, quantize_x=False, **o),
            "linear_w8",
        ),
        "frames_to_uint8": (lambda x=pixels, **o: kernels.frames_to_uint8(x, **o), "frames_to_uint8"),
        "frames_to_nv12": (lambda x=pixels, **o: kernels.frames_to_nv12(x, **o), "frames_to_nv12"),
        "frames_to_yuv420": (lambda x=pixels, **o: kernels.frames_to_yuv420(x, **o), "frames_to_nv12"),
        "attention": (lambda x=q, **o: kernels.attention(x, k, v, **o), "attention"),
        "attention with the log of the sum": (
            lambda x=q, **o: kernels.attention(x, k, v, return_lse=True, **o),
            "attention_lse",
        ),
        "attention_8bit": (lambda x=q, **o: kernels.attention_8bit(x, k, v, **o), "attention_8bit"),
        "attention_8bit_levels": (
            lambda x=levels[0], **o: kernels.attention_8bit_levels(x, *levels[1:], v.half(), dtype=torch.float32, **o),
            "attention_8bit",
        ),
        "chunk_attention": (
            lambda x=q, **o: kernels.chunk_attention(x, k, v, [(2, 3), (0, 1)], **o),
            "chunk_attention",
        ),
        "sparse_attention": (
            lambda x=few, **o: kernels.sparse_attention(x, keys, keys.neg(), mask, **o),
            "sparse_attention",
        ),
        "sparse_attention with the log of the sum": (
            lambda x=few, **o: kernels.sparse_attention(x, keys, keys.neg(), mask, return_lse=True, **o),
            "sparse_attention_lse",
        ),
    }


CALLS = calls()
# Those whose first result alone may be given.
FIRST_ALONE = {name for name in CALLS if "log of the sum" in name}


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def empty(like: Tensor, layout: str) -> Tensor:
    """Room of the same shape and dtype, with values that no result has."""
    if layout == "dense":
        room = torch.empty(like.shape, dtype=like.dtype)
    elif layout == "apart":
        room = torch.empty((*like.shape, 3), dtype=like.dtype)[..., 1]
    else:
        room = torch.empty(like.shape[::-1], dtype=like.dtype).permute(*reversed(range(like.dim())))
    return room.copy_(torch.full(like.shape, 99.0))


def able(name: str) -> list[str]:
    """Implementations that run the call here, the interpreted kernel among them."""
    call, op = CALLS[name]
    found = []
    for candidate in dispatch.candidates(op):
        if candidate.impl == "triton" and ABSENT:
            continue
        try:
            call(impl=candidate.impl)
        except kernels.UnsupportedError:
            continue
        found.append(candidate.impl)
    return found


def test_every_public_function_that_gives_tensors_is_here() -> None:
    """But for the builders of masks and estimates, which are no ops, and the convolutions, which take none."""
    ops = {op for _, op in CALLS.values()}
    convolutions = {"causal_conv3d", "causal_conv3d_norm", "upsample_conv"}
    assert ops == set(dispatch._OPS) - {"guidance_step", *convolutions}


@pytest.mark.parametrize("layout", ["dense", "apart", "turned"])
@pytest.mark.parametrize("name", CALLS)
def test_results_come_into_what_is_given(name: str, layout: str) -> None:
    call, _ = CALLS[name]
    for impl in (None, *able(name)):
        expected = flat(call(impl=impl))
        count = 1 if name in FIRST_ALONE or len(expected) == 1 else len(expected)
        given = [empty(one, layout) for one in expected[:count]]
        found = flat(call(out=given[0] if count == 1 else given, impl=impl))
        assert all(mine is right for mine, right in zip(found, given, strict=False)), impl
        for mine, right in zip(found, expected, strict=True):
            assert torch.equal(mine.float(), right.float()), impl
        if count > 1:  # some of them alone
            found = flat(call(out=[None, given[1]], impl=impl))
            assert found[1] is given[1] and found[0] is not given[0]
            assert all(torch.equal(mine.float(), right.float()) for mine, right in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_hold_the_result_is_refused(name: str) -> None:
    call, _ = CALLS[name]
    first = flat(call())[0]
    wrong = {
        "shape": torch.empty(*first.shape, 1, dtype=first.dtype),
        "dtype": torch.empty(first.shape, dtype=torch.complex64),
        "device": torch.empty(first.shape, dtype=first.dtype, device="meta"),
        "share memory": torch.empty(first.shape[-1], dtype=first.dtype).expand(first.shape),
    }
    for what, given in wrong.items():
        match = "share memory" if what == "share memory" else "out"
        with pytest.raises(ValueError, match=match):
            call(out=given, impl="reference")
    if len(flat(call())) > 1 and name not in FIRST_ALONE:
        with pytest.raises(ValueError, match=r"gives [234] tensors; 5 were given"):
            call(out=[None] * 5)


def results_like_inputs() -> list[str]:
    """Calls whose first result could lie where the first input does."""
    found = []
    for name, (call, _) in CALLS.items():
        (x,) = call.__defaults__ or (None,)
        first = flat(call())[0]
        if first.shape == x.shape and first.dtype == x.dtype:
            found.append(name)
    return found


@pytest.mark.parametrize("name", results_like_inputs())
def test_a_result_may_lie_where_an_input_does(name: str) -> None:
    """Over the input, and shifted by a few elements into it: as if all had been read before anything is written."""
    call, _ = CALLS[name]
    (x,) = call.__defaults__ or (None,)
    for impl in able(name):
        expected = flat(call(impl=impl))[0]
        over = x.clone()
        assert torch.equal(flat(call(over, out=over, impl=impl))[0], expected), impl
        room = torch.empty(x.numel() + 3, dtype=x.dtype)
        given = room[: x.numel()].view(x.shape)
        given.copy_(x)
        out = room[3:].view(x.shape)
        assert torch.equal(flat(call(given, out=out, impl=impl))[0], expected), impl


def test_two_results_may_not_lie_in_one_place() -> None:
    call, _ = CALLS["qk_norm_rope"]
    both = flat(call())[0].clone()
    with pytest.raises(ValueError, match=r"out 1 shares memory with one before it; give each memory of its own"):
        call(out=(both, both))
    x = random(4)
    outs = torch.empty(7)
    with pytest.raises(ValueError, match="guidance_step cannot write there: out 1 shares memory"):
        kernels.guidance_step(x, x, None, None, random(2, 2), out=(outs[:4], outs[3:]))


def test_a_given_output_is_written_under_compile_and_its_shape_is_held_to() -> None:
    x, weight = random(2, 5, 16), random(16)

    @torch.compile(backend="eager", fullgraph=True)
    def norm(x: Tensor, out: Tensor) -> Tensor:
        return kernels.rms_norm(x, weight, 1e-6, out=out)

    out = torch.empty_like(x)
    norm(x, out)
    torch.testing.assert_close(out, kernels.rms_norm(x, weight, 1e-6))


def test_a_kernel_writes_into_the_given_memory_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the result's size is made beside it."""
    made: list[tuple[int, ...]] = []
    true_empty = torch.empty

    def noted(size: Any, **about: Any) -> Tensor:
        if str(about.get("device")) != "meta":  # of which is only asked what is expected
            made.append(tuple(size))
        return true_empty(size, **about)

    for name in ("ada_norm", "layer_norm", "qk_norm_rope", "linear", "linear_w8", "quantize_rows", "frames_to_nv12"):
        call, _ = CALLS[name]
        expected = flat(call())
        given = [true_empty(one.shape, dtype=one.dtype) for one in expected]
        monkeypatch.setattr(torch, "empty", noted)
        found = flat(call(out=given[0] if len(given) == 1 else given, impl="triton"))
        monkeypatch.undo()
        assert found[0] is given[0] and tuple(expected[0].shape) not in made, name


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((2, 3), (3, 1), False),
        ((2, 3), (1, 2), False),
        ((2, 3), (0, 1), True),
        ((2, 3), (2, 1), True),
        ((1, 3), (0, 1), False),
        ((3, 2, 4), (16, 8, 2), False),
        ((3, 2, 4), (4, 2, 1), True),
        ((0, 3), (0, 0), False),
        ((), (), False),
    ],
)
def test_elements_that_share_memory_are_found(shape: tuple[int, ...], strides: tuple[int, ...], overlaps: bool) -> None:
    """Against the addresses of all elements."""
    x = torch.empty(64).as_strided(shape, strides)
    places = torch.arange(64).as_strided(shape, strides).flatten()
    assert (len(places.unique()) < len(places)) is overlaps
    assert outputs.overlaps_itself(x) is overlaps

"""The CUDA kernels of causal_conv3d, as far as they can be proved without a GPU.

Their geometry (which output a tile writes, which frame it reads, what TMA is told) by properties; their arithmetic, the
movement of data and the order of threads by running them on the CPU.
"""

from __future__ import annotations

from itertools import product

import emulated
import pytest
import torch
import torch.nn.functional as F
from budget import adversarial, check_budget, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glimt_kernels import Case, native
from glimt_kernels.causal_conv3d import cuda
from glimt_kernels.causal_conv3d.api import CONV, NORM
from glimt_kernels.causal_conv3d.call import Call
from glimt_kernels.resources import SHARED_LIMIT

lib = native.lib
FAMILIES = pytest.mark.parametrize("hopper", [False, True], ids=["ampere", "hopper"])


def packed_sizes(b: int, f: int, past: int, h: int, w: int, channels: int, out: int) -> cuda.Sizes:
    frame, frame_out = h * w * channels, h * w * out
    return (b, f, past, h, w, channels, out, f * frame, frame, past * frame, frame, f * frame_out, frame_out)


@st.composite
def sizes(draw: st.DrawFn) -> cuda.Sizes:
    small = st.integers(1, 19)
    f, h, w = draw(st.integers(1, 9)), draw(small), draw(small)
    channels, out = draw(st.sampled_from([32, 96, 192, 384])), draw(st.sampled_from([96, 192, 384]))
    return packed_sizes(draw(st.integers(1, 3)), f, draw(st.integers(0, 2)), h, w, channels, out)


# ---- geometry ----


@FAMILIES
@given(n=sizes())
@settings(deadline=None)
def test_tiles_write_every_output_once(hopper: bool, n: cuda.Sizes) -> None:
    b, f, _, h, w, _, out = n[:7]
    pixels, channels, _, _, _, _, count = lib.causal_conv3d_tiling(n, hopper)
    written = torch.zeros(b, f, h * w, out, dtype=torch.int)
    for index in range(count):
        sample, frame, frames, pixel, channel = lib.causal_conv3d_tile(n, hopper, index)
        assert frames >= 1 and frame + frames <= f and pixel < h * w
        written[sample, frame : frame + frames, pixel : pixel + pixels, channel : channel + channels] += 1
    assert (written == 1).all()


@FAMILIES
@given(n=sizes())
@settings(deadline=None)
def test_every_tap_of_every_frame_is_read_where_it_lies(hopper: bool, n: cuda.Sizes) -> None:
    """By tap t, output frame f sees frame f + t - 2 of the clip: before it comes the history, and before that zeros."""
    f, known = n[1:3]
    clip = [(0, None)] * (2 - known) + [(1, i) for i in range(known)] + [(2, i) for i in range(f)]
    for index in range(lib.causal_conv3d_tiling(n, hopper)[-1]):
        _, frame, frames, _, _ = lib.causal_conv3d_tile(n, hopper, index)
        sources, taps = lib.causal_conv3d_sources(n, hopper, index)
        seen = 0
        for i, t in product(range(frames), range(3)):
            kind, place = clip[frame + i + t]
            assert sources[i + t][0] == kind and (kind == 0 or sources[i + t][1] == place)
            seen |= (kind > 0) << t
        assert taps == seen


@given(n=sizes(), gap=st.integers(0, 3))
@settings(deadline=None)
def test_what_tma_may_read_is_the_tensors_and_all_of_them(n: cuda.Sizes, gap: int) -> None:
    """Sizes and steps against PyTorch's own of the same tensors: slices of a ring of frames."""
    b, f, known, h, w, channels, out = n[:7]
    ring = torch.empty(b, f + known + gap, h, w, channels, device="meta", dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
    x, past = ring[:, :, known : known + f], ring[:, :, :known]
    of_x, of_past, of_weight = lib.causal_conv3d_maps(cuda.sizes_of(x, out, past, None))
    for (map_sizes, steps), t in ((of_x, x), (of_past, past))[: 2 if known else 1]:
        assert map_sizes == [channels, w, h, t.shape[2], b]
        used = [i for i, size in enumerate(map_sizes[1:]) if size > 1]
        assert [steps[i] for i in used] == [2 * t.stride((4, 3, 2, 0)[i]) for i in used]
        assert all(step % 16 == 0 for step in steps)
    weight = torch.empty(out, 3, 3, 3, channels, device="meta")
    assert of_weight[0] == [channels, out, 9, 3]
    assert of_weight[1] == [2 * step for step in (weight.stride(0), weight.stride(3), weight.stride(1))]


@given(n=sizes())
@settings(deadline=None)
def test_a_tile_fits_the_shared_memory_of_its_chips(n: cuda.Sizes) -> None:
    for hopper, chips in ((True, (90,)), (False, (80, 86, 89, 100, 120))):
        pixels, channels, frames, threads, shared, steps, _ = lib.causal_conv3d_tiling(n, hopper)
        assert shared <= min(SHARED_LIMIT[chip] for chip in chips)
        sums = pixels * channels * frames // (256 if hopper else threads)
        assert sums in (96, 192)  # registers of a thread that multiplies
        depth = 9 * n[5] // steps
        assert depth * steps == 9 * n[5] and shared >= 3 * depth * 2 * ((frames + 2) * pixels + 3 * channels)


@pytest.mark.parametrize(
    ("change", "norm", "why"),
    [
        ({6: 128}, False, "96, 192 or 384"),
        ({5: 48}, False, "multiple of 32"),
        ({5: 0}, False, "multiple of 32"),
        ({2: 3}, False, "two frames of history"),
        ({6: 384}, True, "at most 192 channels"),
        ({3: 1 << 13, 4: 1 << 13}, False, "2\\^31 elements"),
        ({0: 1 << 15, 1: 1 << 12, 3: 100}, False, "2\\^31 tiles"),
        ({8: 4}, False, "multiple of 8"),
        ({12: 4}, False, "multiple of 8"),
        ({3: 1 << 40}, False, "32 bits"),
        ({0: -1}, False, "negative"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(change: dict[int, int], norm: bool, why: str) -> None:
    good = list(packed_sizes(1, 2, 2, 4, 4, 96, 96))
    assert lib.causal_conv3d_refusal(tuple(good), True) == ""
    for place, value in change.items():
        good[place] = value
    with pytest.raises(AssertionError, match=why):
        assert lib.causal_conv3d_refusal(tuple(good), norm) == ""


# ---- the kernels ----


def last(x: Tensor) -> Tensor:
    return x.bfloat16().contiguous(memory_format=torch.channels_last_3d)


def inputs(b: int, f: int, known: int, h: int, w: int, channels: int, out: int) -> dict[str, Tensor | None]:
    """x and its history are slices of one ring of frames in which all else is NaN; so is what is added."""
    ring = torch.full((b, known + f + 2, h, w, channels), float("nan")).bfloat16().permute(0, 4, 1, 2, 3)
    x, past = ring[:, :, known + 1 : known + f + 1], ring[:, :, 1 : known + 1]
    x.copy_(random(b, channels, f, h, w, seed=1))
    past.copy_(random(b, channels, known, h, w, seed=2))
    added = torch.full((b, f + 1, h, w, out), float("nan")).bfloat16().permute(0, 4, 1, 2, 3)[:, :, 1:]
    added.copy_(random(b, out, f, h, w, seed=3))
    return {
        "x": x,
        "weight": last(random(out, channels, 3, 3, 3, seed=4) / (27 * channels) ** 0.5),
        "bias": random(out, seed=5).bfloat16(),
        "past": past if known else None,
        "plus": added,
        "gamma": random(out, seed=6).bfloat16(),
    }


def plain(call: dict[str, Tensor | None], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(y, silu(rms_norm(y) * gamma)) as PyTorch computes them, by padding and concatenation."""
    x, weight, bias, past, plus, gamma = (None if t is None else t.to(dtype) for t in call.values())
    assert x is not None and weight is not None
    clip = x if past is None else torch.cat([past, x], dim=2)
    y = F.conv3d(F.pad(clip, (1, 1, 1, 1, 2 - (clip.shape[2] - x.shape[2]), 0)), weight, bias)
    y = y if plus is None else y + plus
    if gamma is None:
        return y, y
    norm = F.normalize(y, dim=1, eps=1e-12) * y.shape[1] ** 0.5
    return y, F.silu(norm * gamma.view(-1, 1, 1, 1))


def check(call: dict[str, Tensor | None], *, hopper: bool, keep: bool = True, seed: int = 0, blocks: int = 2) -> None:
    y, normed, conflicts = emulated.run(**call, hopper=hopper, keep=keep, seed=seed, blocks=blocks)
    exact, honest = plain(call, torch.float64), plain(call, torch.bfloat16)
    for what, found, i in (("y", y, 0), ("norm", normed, 1)):
        if found is not None:
            check_budget(found, honest[i], exact[i], what)
    assert conflicts == 0


# Batch, frames, history, height, width, channels in and out: several tiles of pixels and of frames, the last of each
# not whole; with blocks that take several tiles in turn.
SHAPES = {
    "no history": (1, 1, 0, 3, 5, 32, 96),
    "one frame known": (2, 2, 1, 3, 3, 32, 96),
    "more than a tile": (1, 5, 2, 11, 13, 32, 96),
    "the width of 96": (1, 4, 2, 4, 5, 96, 96),
    "192": (1, 3, 2, 10, 13, 32, 192),
    "one pixel": (3, 1, 2, 1, 1, 64, 192),
    "384": (1, 2, 1, 4, 5, 32, 384),
}


@FAMILIES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_within_budget(hopper: bool, shape: tuple[int, ...]) -> None:
    call = inputs(*shape)
    if shape[-1] == 384:
        call["gamma"] = None
    check(call, hopper=hopper)


@FAMILIES
@pytest.mark.parametrize("left_out", ["bias", "plus", "gamma", "all three", "y"])
def test_what_is_not_given_is_not_done(hopper: bool, left_out: str) -> None:
    call = inputs(1, 1, 1, 3, 3, 32, 96)
    for name in ("bias", "plus", "gamma") if left_out == "all three" else (left_out,):
        if name in call:
            call[name] = None
    check(call, hopper=hopper, keep=left_out != "y")


@FAMILIES
@pytest.mark.parametrize("name", adversarial(1, 1, dtype=torch.bfloat16))
def test_adversarial_inputs_within_budget(hopper: bool, name: str) -> None:
    call = inputs(1, 1, 1, 2, 3, 32, 96)
    call["x"] = last(adversarial(1, 1, 2, 3, 32, dtype=torch.bfloat16)[name].permute(0, 4, 1, 2, 3))
    call["past"] = call["x"].clone()
    check(call, hopper=hopper)


@FAMILIES
def test_a_nan_stays_one_and_stays_where_it_is_seen(hopper: bool) -> None:
    call = inputs(1, 3, 0, 5, 5, 32, 96)
    assert call["x"] is not None
    call["x"][0, 7, 1, 1, 1] = float("nan")
    y, normed, _ = emulated.run(**call, hopper=hopper)
    assert y is not None and normed is not None
    seen = torch.zeros(3, 5, 5, dtype=torch.bool)
    seen[1:, :3, :3] = True
    assert torch.equal(y.isnan().all(dim=1)[0], seen) and torch.equal(y.isnan().any(dim=1)[0], seen)
    assert torch.equal(normed.isnan().all(dim=1)[0], seen) and torch.equal(normed.isnan().any(dim=1)[0], seen)


@FAMILIES
def test_any_order_of_the_threads_gives_the_same(hopper: bool) -> None:
    call = inputs(1, 2, 1, 3, 3, 32, 96)
    first, *others = (emulated.run(**call, hopper=hopper, seed=seed)[:2] for seed in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a is not None and b is not None)


# ---- what Python gives them ----


def test_slices_of_a_ring_are_taken_as_they_are_and_other_layouts_are_copied() -> None:
    ring = torch.zeros(2, 9, 4, 5, 32).bfloat16().permute(0, 4, 1, 2, 3)
    for x in (ring, ring[:, :, 3:7], ring[1:, :, :1], ring[:1, :, ::2], ring[:, :, :, 1:]):
        assert cuda.innermost(x) is x
    for x in (ring[..., 1:], ring[:, :16], ring.contiguous(), ring.mT):
        copied = cuda.innermost(x)
        assert copied is not x and torch.equal(copied, x)
        assert cuda.innermost(copied) is copied


def test_what_begins_at_an_odd_place_is_copied() -> None:
    flat = torch.arange(33).bfloat16()
    assert cuda.aligned(flat) is flat
    moved = cuda.aligned(flat[1:])
    assert moved.data_ptr() % 16 == 0 and torch.equal(moved, flat[1:])


def test_an_axis_of_one_has_the_step_that_it_would_have() -> None:
    odd = torch.zeros(64).bfloat16().as_strided((1, 32, 1, 2, 1), (5, 1, 7, 32, 9))
    assert cuda.steps(odd) == (64, 64)
    assert cuda.innermost(odd) is odd


def test_reasons_name_what_is_wrong() -> None:
    def said(case: Case, why: str, norm: bool = False) -> bool:
        return any(why in reason for reason in (cuda.norm_reasons(case) if norm else cuda.reasons(case)))

    case = Case("cuda", torch.bfloat16, arch=90)
    assert cuda.norm_reasons(case) == cuda.reasons(case) == ([] if cuda.absent() is None else [cuda.absent()])
    assert said(case._replace(device="cpu"), "the tensors are on cpu")
    assert said(case._replace(dtype=torch.float32), "float32")
    assert said(case._replace(arch=75), "sm_75")
    assert said(case._replace(sizes=Call(n=64)), "96, 192 or 384 channels; here 96 become 64")
    assert said(case._replace(sizes=Call(channels=16)), "multiple of 32 channels; here 16 become 96")
    assert said(case._replace(sizes=Call(rows=1, columns=1)), "3x3x3, not 3x1x1")
    assert said(case._replace(sizes=Call(interleave=1)), "interleave")
    assert said(case._replace(sizes=Call(n=384)), "at most 192 channels", norm=True)
    assert not said(case._replace(sizes=Call(n=384)), "at most 192 channels")


def test_the_ops_ask_for_what_they_are_called_with() -> None:
    x, weight = torch.zeros(1, 32, 2, 3, 3), torch.zeros(96, 32, 3, 1, 1)
    assert Call(*CONV.case((x, weight, None, None, None, True)).sizes) == Call(96, 0, 32, 3, 1, 1, 1)
    assert Call(*NORM.case((x, weight, None, None, None, weight[0], True)).sizes) == Call(96, 0, 32, 3, 1, 1, 0)


def test_a_build_without_them_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ABSENT", None)
    monkeypatch.setattr(lib, "cuda_archs", lambda: "80 90a")
    monkeypatch.setattr(lib, "causal_conv3d_archs", lambda: "")
    assert "pip install --no-deps nvidia-cutlass" in (cuda.absent() or "")
    monkeypatch.setattr(lib, "cuda_archs", lambda: "")
    assert "no nvcc was found" in (cuda.absent() or "")


def test_a_launch_that_cannot_be_is_an_error_with_the_reason() -> None:
    if not lib.causal_conv3d_archs():
        pytest.skip("needs nvcc and CUTLASS in the build")
    nothing = (0,) * 8
    with pytest.raises(ValueError, match=r"causal_conv3d on CUDA: it writes 96, 192 or 384 channels"):
        lib.causal_conv3d_cuda(packed_sizes(1, 1, 0, 4, 4, 96, 100), nothing, 0)
    lib.causal_conv3d_cuda(packed_sizes(0, 1, 0, 4, 4, 96, 96), nothing, 0)  # nothing to do
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"causal_conv3d on CUDA: .*CUDA"):
            lib.causal_conv3d_cuda(packed_sizes(1, 1, 0, 4, 4, 96, 96), nothing, 0)

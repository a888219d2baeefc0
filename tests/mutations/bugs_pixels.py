"""Bugs of frames_to_uint8, frames_to_nv12 and guidance_step."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_FRAMES = "test_frames_to_uint8.py::"
rgb = partial(Mutation, "frames_to_uint8", "frames_to_uint8/triton.py")
nv12 = partial(Mutation, "frames_to_nv12", "frames_to_uint8/triton.py")
FRAMES = [
    rgb(
        _FRAMES + "test_triton_rounds_halves_to_even",
        "halves rounded up",
        "255.0) + 12582912.0).to(tl.int32, bitcast=True) & 255",
        "255.0) + 0.5).to(tl.int32) & 255",
    ),
    rgb(
        _FRAMES + "test_triton_rounds_halves_to_even",
        "scaled and moved in one product",
        "_unit(x) * 255.0, 255.0)",
        "x.to(tl.float32) * 127.5 + 127.5, 255.0)",
    ),
    nv12(
        _FRAMES + "test_nv12_of_what_is_no_colour",
        "a NaN passed on",
        "return tl.where(unit > 0.0, unit, 0.0)",
        "return tl.where(unit < 0.0, 0.0, unit)",
    ),
    rgb(
        _FRAMES + "test_triton_gives_the_same_bytes",
        "a byte of a word in the wrong place",
        "_fourths((p1 >> 8) | (p2 << 16))",
        "_fourths((p1 >> 8) | (p2 << 8))",
    ),
    rgb(
        _FRAMES + "test_triton_gives_the_same_bytes",
        "the last words not written",
        "_four(c2, a3, b3, c3), mask=row + 8 < words",
        "_four(c2, a3, b3, c3), mask=row + 12 < words",
    ),
    rgb(
        _FRAMES + "test_triton_gives_the_same_bytes",
        "green read from the plane of blue",
        "g = _level(tl.load(base + (step_c + at)",
        "g = _level(tl.load(base + (2 * step_c + at)",
    ),
    rgb(
        _FRAMES + "test_triton_gives_the_same_bytes",
        "all frames those of the first sample",
        "frame // frames * step_b + frame % frames * step_f + line % lines * step_h",
        "frame % frames * step_f + line % lines * step_h",
    ),
    nv12(
        _FRAMES + "test_nv12_is_the_nearest_level",
        "Cr before Cb",
        "tl.reshape(tl.join(cb, cr)",
        "tl.reshape(tl.join(cr, cb)",
    ),
    nv12(
        _FRAMES + "test_nv12_is_the_nearest_level",
        "the plane of Cr begins a line early",
        "* (HEIGHT // 2 * HALF)",
        "* ((HEIGHT // 2 - 1) * HALF)",
    ),
    nv12(
        _FRAMES + "test_nv12_is_the_nearest_level",
        "the plane of Cr before that of Cb",
        "tl.permute(tl.join(cb, cr)",
        "tl.permute(tl.join(cr, cb)",
    ),
    nv12(
        _FRAMES + "test_colour_bars",
        "luma of BT.601",
        "0.2126 * r + 0.7152 * g + 0.0722 * b",
        "0.299 * r + 0.587 * g + 0.114 * b",
    ),
    nv12(
        _FRAMES + "test_nv12_is_the_nearest_level",
        "each line twice",
        "_line(base, at + step_h, step_c, inside)",
        "_line(base, at, step_c, inside)",
    ),
    nv12(
        _FRAMES + "test_nv12_is_the_nearest_level",
        "full range in upper lines",
        "tl.store(upper, _rounded(219.0 * y + 16.0)",
        "tl.store(upper, _rounded(255.0 * y)",
    ),
]

_STEP = "test_guidance_step.py::"
step = partial(Mutation, "guidance_step", "guidance_step/triton.py")
GUIDANCE_STEP = [
    step(_STEP + "test_within_budget", "guided away from the prompt", "* (v - other)", "* (other - v)"),
    step(
        _STEP + "test_within_budget",
        "the second row's numbers begin one early",
        "_combined(coefficients + STEP,",
        "_combined(coefficients + STEP - 1,",
    ),
    step(_STEP + "test_within_budget", "the last element not written", "inside = at < size", "inside = at < size - 1"),
    step(
        _STEP + "test_within_budget",
        "the third tensor of history is the second again",
        "past2 = tl.load(h2 + at",
        "past2 = tl.load(h1 + at",
    ),
    step(
        _STEP + "test_outputs_may_be_given_and_may_be_inputs",
        "the first output written before the last inputs are read",
        "    STEP: tl.constexpr = 2 + HISTORY\n",
        "    STEP: tl.constexpr = 2 + HISTORY\n    tl.store(out0 + at, v, mask=inside)\n"
        "    x = tl.load(latents + at, mask=inside, other=0.0)\n",
    ),
]

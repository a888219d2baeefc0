"""Bugs of the CPU kernels in C++: each compiles the module anew."""

from __future__ import annotations

from functools import partial

from plant import Mutation

norm = partial(Mutation, "ada_norm", "ada_norm/cpu.h")
gated = partial(Mutation, "gated_ada_norm", "ada_norm/cpu.h")
rope = partial(Mutation, "qk_norm_rope", "qk_norm_rope/cpu.h")
silu = partial(Mutation, "rms_norm_silu", "rms_norm_silu/cpu.h")
frames = partial(Mutation, "frames_to_uint8", "frames_to_uint8/cpu.h")
NATIVE = [
    norm(
        "test_ada_norm.py::test_within_budget",
        "the rounding of the mean not corrected (C++)",
        "fma(((v - mean) - rest) * factor,",
        "fma((v - mean) * factor + 0.0f * rest,",
    ),
    norm(
        "test_ada_norm.py::test_within_budget",
        "eps dropped (C++)",
        "(variance < 0 ? 0 : variance) + eps",
        "(variance < 0 ? 0 : variance) + 0.0f * eps",
    ),
    norm(
        "test_ada_norm.py::test_within_budget",
        "one lane of the padding counted (C++)",
        "int64_t lane = n; lane",
        "int64_t lane = n + 1; lane",
    ),
    gated(
        "test_ada_norm.py::test_after_a_branch_within_budget",
        "the residual gated, not the branch (C++)",
        "fma(g, b, r)",
        "fma(g, r, b)",
    ),
    rope(
        "test_qk_norm_rope.py::test_within_budget",
        "the other way in whole vectors (C++)",
        "swap_pairs(y) * signs",
        "swap_pairs(y) * -signs",
    ),
    rope(
        "test_qk_norm_rope.py::test_within_budget",
        "the other way in the rest (C++)",
        "first * cos[i / 2] - second * sin[i / 2]",
        "first * cos[i / 2] + second * sin[i / 2]",
    ),
    rope(
        "test_qk_norm_rope.py::test_within_budget",
        "every head weighted by the first's weights (C++)",
        "a.weight + at,",
        "a.weight,",
    ),
    silu(
        "test_rms_norm_silu.py::test_within_budget",
        "eps dropped (C++)",
        "norm < a.eps ? a.eps : norm",
        "norm",
    ),
    silu(
        "test_rms_norm_silu.py::test_within_budget",
        "the factor of a row rounded to one float (C++)",
        "times(x, factor, rest)",
        "times(x, factor, 0.0f * rest)",
    ),
    silu("test_rms_norm_silu.py::test_within_budget", "bias dropped (C++)", "y += bias;", "y += 0.0f * bias;"),
    silu(
        "test_rms_norm_silu.py::test_within_budget",
        "SiLU always (C++)",
        "return kSilu ? silu(y) : y;",
        "return silu(y);",
    ),
    silu(
        "test_rms_norm_silu.py::test_within_budget",
        "the root of the channels forgotten (C++)",
        "exact = root / ",
        "exact = 0.0 * root + 1.0 / ",
    ),
    frames(
        "test_frames_to_uint8.py::test_halves_go_to_even",
        "halves rounded up (C++)",
        "unit * 255.0f + 8388608.0f;",
        "unit * 255.0f + 0.0001f + 8388608.0f;",
    ),
    frames(
        "test_frames_to_uint8.py::test_what_is_no_colour",
        "a NaN passed on (C++)",
        "unit > 0.0f ? unit : Vec{}",
        "unit < 0.0f ? Vec{} : unit",
    ),
]

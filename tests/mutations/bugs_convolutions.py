"""Bugs of causal_conv3d, causal_conv3d_norm and upsample_conv, which share a kernel."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_CONV = "test_causal_conv3d.py::"
_LAYER = _CONV + "test_triton_within_budget[%s-torch.float32]"
conv = partial(Mutation, "causal_conv3d", "causal_conv3d/triton.py")
norm = partial(Mutation, "causal_conv3d_norm", "causal_conv3d/triton.py")
double = partial(Mutation, "upsample_conv", "causal_conv3d/triton.py")
CAUSAL_CONV3D = [
    conv(
        _LAYER % "(5, 7, (3, 3, 3), 1, False)",
        "a neighbour too many to the right",
        "(column + right < width)",
        "(column + right <= width)",
    ),
    conv(
        _LAYER % "(1, 1, (3, 3, 3), 2, False)",
        "a neighbour too many above",
        "(row + down >= 0)",
        "(row + down >= -1)",
    ),
    conv(
        _LAYER % "(5, 7, (3, 3, 3), 1, False)",
        "frames that are not there are those before the past",
        "tl.maximum(TIMES - 1 - known - frame, 0)",
        "tl.maximum(TIMES - 1 - frame - 2, 0)",
    ),
    conv(
        _LAYER % "(1, 1, (3, 3, 3), 2, False)",
        "the frames before are read one early",
        "past + (known + time).to(tl.int64)",
        "past + (known + time - 1).to(tl.int64)",
    ),
    conv(
        _CONV + "test_any_number_of_samples_and_strides",
        "the frames before are read by the strides of x",
        "(known + time).to(tl.int64) * past_frame",
        "(known + time).to(tl.int64) * x_frame",
    ),
    conv(
        _LAYER % "(16, 48, (1, 3, 3), 0, False)",
        "the second part of the output channels takes the weights of the first",
        "n = N_STARTS[part] + tl.arange(0, tl.constexpr(N_PARTS[part]))\n                b_at",
        "n = 0 * N_STARTS[part] + tl.arange(0, tl.constexpr(N_PARTS[part]))\n                b_at",
    ),
    conv(
        _LAYER % "(19, 10, (3, 1, 1), 2, True)",
        "both frames take the bias of the first",
        "bias += group * N",
        "bias += 0 * group",
    ),
    conv(
        _LAYER % "(19, 10, (3, 1, 1), 2, True)",
        "first all first frames, then all second ones",
        "frame = frame * GROUPS + group",
        "frame = group * frames + frame",
    ),
    conv(
        _CONV + "test_any_number_of_samples_and_strides",
        "the sum of all samples with the first's residual",
        "plus += sample * plus_sample",
        "plus += 0 * sample",
    ),
]
CAUSAL_CONV3D_NORM = [
    norm(
        _CONV + "test_what_is_normalized_is_the_convolution_as_it_is_stored",
        "normalized before it is rounded",
        "value = value.to(normed.dtype.element_ty).to(tl.float32)",
        "value = value",
    ),
    norm(
        _CONV + "test_the_norm_behind_it_within_budget",
        "the squares are those of the last part",
        "squares += tl.sum(value * value, 1)",
        "squares = tl.sum(value * value, 1)",
    ),
    norm(
        _CONV + "test_a_pixel_of_zeros_and_one_that_is_no_number",
        "no smallest norm",
        "tl.where(norm < 1e-12, 1e-12, norm)",
        "norm",
    ),
    norm(_CONV + "test_the_norm_behind_it_within_budget", "no SiLU", "y / (1.0 + tl.exp(-y))", "y"),
]
_DOUBLE = "test_upsample_conv.py::"
UPSAMPLE_CONV = [
    double(
        _DOUBLE + "test_triton_within_budget",
        "lower pixels see the row above too",
        "top -= group // 2",
        "top -= 0 * group",
    ),
    double(
        _DOUBLE + "test_triton_within_budget",
        "rows and columns of the four pixels exchanged",
        "2 * column + group % 2",
        "2 * column + 1 - group % 2",
    ),
    double(
        _DOUBLE + "test_triton_within_budget",
        "all four pixels take the weights of the first",
        "weight += (group * N + first)",
        "weight += (0 * group + first)",
    ),
]

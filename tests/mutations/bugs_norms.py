"""Bugs of layer_norm, rms_norm, ada_norm, qk_norm_rope and their 8-bit forms."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_ADA = "test_ada_norm.py::"
ada = partial(Mutation, "ada_norm", "ada_norm/triton.py")
gated = partial(Mutation, "gated_ada_norm", "ada_norm/triton.py")
ada_8bit = partial(Mutation, "ada_norm_8bit", "ada_norm/triton.py")
gated_8bit = partial(Mutation, "gated_ada_norm_8bit", "ada_norm/triton.py")
eight_bit = partial(Mutation, "ada_norm_8bit", "eight_bit/triton.py")
ADA_NORM = [
    ada(
        _ADA + "test_triton_within_budget",
        "deviations of the padding counted",
        "deviation = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)",
        "deviation = value - tl.sum(value, 0) / WIDTH",
    ),
    ada(
        _ADA + "test_triton_within_budget",
        "the rounding of the mean not corrected",
        "deviation = tl.where(inside, deviation - tl.sum(deviation, 0) / WIDTH, 0.0)",
        "deviation = tl.where(inside, deviation, 0.0)",
    ),
    ada(_ADA + "test_triton_within_budget", "eps dropped", "/ WIDTH + eps)", "/ WIDTH)"),
    ada(
        _ADA + "test_triton_within_budget",
        "scale and shift swapped",
        "normalized = deviation * inverse * factor + offset",
        "normalized = deviation * inverse * (1.0 + offset) + (factor - 1.0)",
    ),
    ada(
        _ADA + "test_triton_within_budget",
        "every token takes the scale of the first",
        "scale + sample * scale_sample + token * scale_token + column",
        "scale + sample * scale_sample + column",
    ),
    gated(
        _ADA + "test_triton_after_a_branch_within_budget",
        "the residual dropped",
        "value += tl.load(at, mask=inside, other=0.0).to(tl.float32)",
        "value += 0.0 * tl.load(at, mask=inside, other=0.0).to(tl.float32)",
    ),
    gated(
        _ADA + "test_what_is_normalized_is_the_stream_as_it_is_stored",
        "the stream normalized before it is rounded",
        "value = narrow.to(tl.float32)",
        "value = value",
    ),
    gated(
        _ADA + "test_triton_after_a_branch_takes_any_number_of_samples_and_strides",
        "the residual read by the strides of x",
        "residual + sample * residual_sample + token * residual_token + column",
        "residual + sample * x_sample + token * x_token + column",
    ),
    gated(
        _ADA + "test_triton_after_a_branch_takes_any_number_of_samples_and_strides",
        "every token takes the gate of the first",
        "gate + sample * gate_sample + token * gate_token + column",
        "gate + sample * gate_sample + column",
    ),
    ada_8bit(
        _ADA + "test_8_bits_within_budget",
        "the scale from the largest value, not the largest magnitude",
        "tl.max(magnitude(normalized), 0)",
        "tl.max(tl.maximum(normalized, 0.0).to(tl.int32, bitcast=True), 0)",
    ),
    ada_8bit(
        _ADA + "test_8_bits_within_budget",
        "multiplied by the scale instead of divided",
        "levels(normalized, 1.0 / row_scale, out)",
        "levels(normalized, row_scale, out)",
    ),
    gated_8bit(
        _ADA + "test_8_bits_after_a_branch_within_budget",
        "the scales of all samples written over each other",
        "tl.store(row_scales + row, row_scale)",
        "tl.store(row_scales + token, row_scale)",
    ),
    gated_8bit(
        _ADA + "test_triton_after_a_branch_takes_any_number_of_samples_and_strides",
        "the gate dropped",
        "value *= tl.load(at, mask=inside, other=0.0).to(tl.float32)",
        "value *= 1.0",
    ),
    eight_bit(
        _ADA + "test_8_bits_within_budget",
        "one level too many: 128 wraps to -128",
        "127.0 if out.dtype.element_ty == tl.int8",
        "128.0 if out.dtype.element_ty == tl.int8",
    ),
    eight_bit(
        _ADA + "test_8_bits_of_a_row_of_zeros",
        "no smallest scale",
        "tl.maximum(largest, 0x0D800000)",
        "tl.maximum(largest, 0)",
    ),
    eight_bit(
        _ADA + "test_8_bits_of_any_number_of_samples_and_strides",
        "levels cut, not rounded",
        "level = (value + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)",
        "level = value.to(tl.int8)",
    ),
    eight_bit(
        _ADA + "test_the_scale_of_a_row_that_is_not_finite_is_not",
        "a NaN is no magnitude",
        "return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF",
        "return tl.where(x == x, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)",
    ),
]

_QK = "test_qk_norm_rope.py::"
qk = partial(Mutation, "qk_norm_rope", "qk_norm_rope/triton.py")
QK_NORM_ROPE = [
    qk(
        _QK + "test_triton_within_budget",
        "queries turned the other way",
        "_store(q_out, a * c - b * s, a * s + b * c,",
        "_store(q_out, a * c + b * s, b * c - a * s,",
    ),
    qk(
        _QK + "test_triton_within_budget",
        "keys weighted by the weight of the queries",
        "weight_a, weight_b = _load(k_weight,",
        "weight_a, weight_b = _load(q_weight,",
    ),
    qk(
        _QK + "test_triton_within_budget[(True, 'interleaved', False)-torch.float32]",
        "a head's squares divided by the whole width",
        "tl.sum(a * a + b * b, 1) / HEAD_DIM",
        "tl.sum(a * a + b * b, 1) / (HEADS * HEAD_DIM)",
    ),
    qk(
        _QK + "test_triton_within_budget",
        "eps dropped, full width",
        "tl.sum(a * a + b * b) / (HEADS * HEAD_DIM) + eps",
        "tl.sum(a * a + b * b) / (HEADS * HEAD_DIM)",
    ),
    qk(
        _QK + "test_triton_within_budget[(False, 'half', True)-torch.float32]",
        "second halves of keys begin one channel early",
        "k_a, k_b = _load(k, at, at + PAIRS,",
        "k_a, k_b = _load(k, at, at + PAIRS - 1,",
    ),
    qk(
        _QK + "test_triton_within_budget[(False, 'interleaved', True)-torch.float32]",
        "every head takes the angles of the first",
        "(head * PAIRS + pair if TABLE_HEADS else pair)",
        "(0 * head + pair if TABLE_HEADS else pair)",
    ),
    qk(
        _QK + "test_triton_takes_any_number_of_samples_and_strides",
        "keys read by the strides of the queries",
        "k += sample * k_sample + token * k_token",
        "k += sample * q_sample + token * q_token",
    ),
    qk(
        _QK + "test_an_order_places_tokens_and_leaves_zeros[(False, 'interleaved', False)-empty places-0.0]",
        "an empty place divided by its own norm",
        "eps = tl.where(present, eps, 1.0)",
        "eps = tl.where(present, eps, eps)",
    ),
    qk(
        _QK + "test_an_order_places_tokens_and_leaves_zeros[(False, 'interleaved', False)-a few, one twice-1e-06]",
        "places counted as tokens",
        "sample, token = row // places, row % places",
        "sample, token = row // tokens, row % tokens",
    ),
]

_QK8 = "test_qk_norm_rope_8bit.py::"
qk_8bit = partial(Mutation, "qk_norm_rope_8bit", "qk_norm_rope_8bit/triton.py")
QK_NORM_ROPE_8BIT = [
    qk_8bit(
        _QK8 + "test_within_budget",
        "turned the other way",
        "a, b = a * c - b * s, a * s + b * c",
        "a, b = a * c + b * s, b * c - a * s",
    ),
    qk_8bit(
        _QK8 + "test_order_and_empty_places",
        "every sample minus the mean of the first",
        "mean + (sample * HEADS + head) * HEAD_DIM",
        "mean + head * HEAD_DIM",
    ),
    qk_8bit(
        _QK8 + "test_order_and_empty_places",
        "empty places hold minus the mean",
        "a, b = tl.where(present, a - mean_a, 0.0), tl.where(present, b - mean_b, 0.0)",
        "a, b = a - mean_a, b - mean_b",
    ),
    qk_8bit(_QK8 + "test_within_budget", "the factor of the queries dropped", "scale * factor)", "scale)"),
    qk_8bit(
        _QK8 + "test_within_budget",
        "the next head's tile is this one's again",
        "_load(at + (head + 1) * (x_head // UNIT),",
        "_load(at + head * (x_head // UNIT),",
    ),
    qk_8bit(
        _QK8 + "test_every_form",
        "the norm missing where heads have angles of their own",
        "if PER_HEAD or TABLE_HEADS:",
        "if PER_HEAD:",
    ),
    qk_8bit(
        _QK8 + "test_within_budget",
        "the scale from one channel of each pair",
        "tl.max(tl.maximum(tl.abs(a), tl.abs(b)))",
        "tl.max(tl.abs(a))",
    ),
    qk_8bit(
        _QK8 + "test_a_token_that_is_not_finite_makes_the_scale_so",
        "a NaN passed over",
        " + tl.sum(mean_square * 0.0)",
        "",
    ),
]

_NORM = "test_norm.py::"
_SILU = "test_rms_norm_silu.py::"
silu = partial(Mutation, "rms_norm_silu", "rms_norm_silu/triton.py")
RMS_NORM_SILU = [
    silu(
        _SILU + "test_triton_within_budget",
        "the sum of squares is that of the last piece",
        "total += tl.sum(value.to(WORKING) * value, 1)",
        "total = tl.sum(value * value, 1)",
    ),
    silu(
        _SILU + "test_triton_within_budget",
        "every piece takes the weights of the first",
        "channel = part * PIECE + column",
        "channel = 0 * part + column",
    ),
    silu(_SILU + "test_triton_within_budget", "eps dropped", "tl.where(norm < eps, eps, norm)", "norm"),
    silu(
        _SILU + "test_triton_within_budget",
        "SiLU always",
        "        if SILU:\n",
        "        if SILU or WIDTH:\n",
    ),
    silu(
        _SILU + "test_not_a_number_stays_in_its_row[triton]",
        "a norm that is NaN becomes eps",
        "tl.where(norm < eps, eps, norm)",
        "tl.where(norm > eps, norm, eps)",
    ),
    silu(
        _SILU + "test_triton_takes_any_rows_and_strides",
        "rows read one behind the other",
        "row[:, None] * x_row",
        "row[:, None] * WIDTH",
    ),
]

layer = partial(Mutation, "layer_norm", "norm/triton.py")
rms = partial(Mutation, "rms_norm", "norm/triton.py")
NORM = [
    layer(
        _NORM + "test_triton_within_budget[True-torch.float16]",
        "the mean not subtracted",
        "    if CENTERED:\n        value =",
        "    if CENTERED and WIDTH == 0:\n        value =",
    ),
    layer(
        _NORM + "test_triton_within_budget[True-torch.float32]",
        "the rounding of the mean not corrected",
        "(NUMERICS.md).\n        value = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)",
        "(NUMERICS.md).\n        value = tl.where(inside, value, 0.0)",
    ),
    layer(
        _NORM + "test_triton_within_budget[True-torch.float16]",
        "deviations of the padding counted",
        "    if CENTERED:\n        value = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)",
        "    if CENTERED:\n        inside, value = column < BLOCK, value - tl.sum(value, 0) / WIDTH",
    ),
    layer(
        _NORM + "test_triton_within_budget[True-torch.float16]",
        "bias dropped",
        "normalized += tl.load(bias + column",
        "normalized += 0.0 * tl.load(bias + column",
    ),
    rms(_NORM + "test_triton_within_budget[True-torch.float16]", "eps dropped", "/ WIDTH + eps)", "/ WIDTH)"),
    rms(
        _NORM + "test_triton_within_budget[True-torch.float16]",
        "squares divided by the width of the padding too",
        "tl.sum(value * value, 0) / WIDTH",
        "tl.sum(value * value, 0) / BLOCK",
    ),
    rms(
        _NORM + "test_triton_takes_any_rows_and_strides",
        "rows read one behind the other",
        "x + row * x_row + column",
        "x + row * WIDTH + column",
    ),
]

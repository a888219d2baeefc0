"""Bugs of linear, linear_w8a8, linear_w8 and quantize_rows."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_TESTS = "test_linear_quant.py::"
w8a8 = partial(Mutation, "linear_w8a8", "linear_quant/triton.py")
w8 = partial(Mutation, "linear_w8", "linear_quant/triton.py")
rows = partial(Mutation, "quantize_rows", "linear_quant/triton.py")
LINEAR_QUANT = [
    w8a8(
        _TESTS + "test_epilogues_within_budget",
        "the rows' scales dropped",
        "value *= tl.load(x_scales + row, mask=in_row, other=0.0)[:, None]",
        "value *= 1.0",
    ),
    w8a8(
        _TESTS + "test_chips_and_shapes_within_budget",
        "every block of a weight's rows takes the scale of the first",
        "scale = tl.load(weight_scales + start // 128)",
        "scale = tl.load(weight_scales)",
    ),
    w8a8(
        _TESTS + "test_sums_of_int8_are_exact",
        "the last of K dropped",
        "left = step < K - start",
        "left = step < K - start - 1",
    ),
    w8a8(
        _TESTS + "test_epilogues_within_budget",
        "GELU of the square, not the cube",
        "(1.0 + 0.044715 * value * value)",
        "(1.0 + 0.044715 * value)",
    ),
    w8a8(
        _TESTS + "test_epilogues_within_budget",
        "every sample takes the residual of the first",
        "residual += sample * residual_sample",
        "residual += 0 * sample * residual_sample",
    ),
    w8a8(
        _TESTS + "test_sums_of_integers_are_exact_on_every_chip",
        "fp8 sums of a step not added up",
        "sums += tl.dot(a, b, max_num_imprecise_acc=K_STEP)",
        "sums = tl.dot(a, b, max_num_imprecise_acc=K_STEP)",
    ),
    w8a8(
        _TESTS + "test_chips_and_shapes_within_budget",
        "the groups' scales of x dropped",
        "scale = (tl.load(x_scales + start // 128) * scale)[:, None]",
        "scale = (0.0 * tl.load(x_scales + start // 128) + scale)[:, None]",
    ),
    w8a8(
        _TESTS + "test_epilogues_within_budget",
        "the second half of a tile written over the first",
        "n_tile * N_TILE + half * HALF + tl.arange(0, HALF)",
        "n_tile * N_TILE + tl.arange(0, HALF)",
    ),
    w8(
        _TESTS + "test_all_bytes_of_e4m3_are_decoded_exactly",
        "decoded with the wrong bias of the exponent",
        "value = word.to(tl.float16, bitcast=True) * 256.0",
        "value = word.to(tl.float16, bitcast=True) * 128.0",
    ),
    w8(
        _TESTS + "test_all_bytes_of_e4m3_are_decoded_exactly",
        "NaN decoded as 480",
        "word |= (word + 0x80) & 0x4000",
        "word |= 0",
    ),
    w8(
        _TESTS + "test_epilogues_within_budget",
        "the weight's scales dropped",
        "value *= tl.load(weight_scales + column, mask=in_column, other=0.0)[None, :]",
        "value *= 1.0",
    ),
    w8(
        _TESTS + "test_epilogues_within_budget",
        "the bias of the first column for all",
        "value += tl.load(bias + column, mask=in_column",
        "value += tl.load(bias + 0 * column, mask=in_column",
    ),
    w8(
        _TESTS + "test_epilogues_within_budget",
        "every token takes the gate of the first",
        "tl.load(gate + at * gate_token + column[None, :], mask=inside",
        "tl.load(gate + 0 * at * gate_token + column[None, :], mask=inside",
    ),
    rows(
        _TESTS + "test_rounding_to_e4m3_is_to_nearest_even",
        "halves rounded up",
        "magnitude + 0x7FFFF + ((magnitude >> 20) & 1)",
        "magnitude + 0x80000",
    ),
    rows(
        _TESTS + "test_rows_are_quantized_to_the_same_bits",
        "the scales divided, not multiplied by the reciprocal",
        "largest * (1.0 / TOP)",
        "largest / TOP",
    ),
    rows(
        _TESTS + "test_rows_are_quantized_to_the_same_bits",
        "levels cut, not rounded",
        "((value + 12582912.0) - 12582912.0).to(tl.int8)",
        "value.to(tl.int8)",
    ),
    rows(
        _TESTS + "test_rows_are_quantized_to_the_same_bits",
        "the scales of a row's groups written over the next row's",
        "scales + row * count + group",
        "scales + row + group",
    ),
]

_LINEAR = "test_linear.py::"
plain = partial(Mutation, "linear", "linear/triton.py")
shared = partial(Mutation, "linear", "linear_quant/triton.py")
LINEAR = [
    plain(
        _LINEAR + "test_triton_within_budget[torch.float16-bias]",
        "bias dropped",
        "Epilogue(bias is not None, ACTIVATIONS",
        "Epilogue(False, ACTIVATIONS",
    ),
    plain(
        _LINEAR + "test_triton_within_budget[torch.float16-residual]",
        "the residual dropped",
        "gate_mode(gate), residual is not None)",
        "gate_mode(gate), False)",
    ),
    plain(
        _LINEAR + "test_any_number_of_rows_and_strides[triton]",
        "the weight's rows read one behind the other",
        "weight.stride(0),",
        "k,",
    ),
    shared(
        _LINEAR + "test_triton_within_budget[torch.float16-gelu tanh]",
        "no bias before a GELU",
        "    if BIAS:",
        "    if BIAS and GELU == 0:",
    ),
    shared(
        _LINEAR + "test_triton_within_budget[torch.float16-gelu erf]",
        "the root of two missing from the exact GELU",
        "tl.erf(value * 0.7071067811865476)",
        "tl.erf(value)",
    ),
    shared(
        _LINEAR + "test_triton_within_budget[torch.float16-gate of a sample]",
        "every sample takes the gate of the first",
        "gate += sample * gate_sample",
        "gate += 0 * sample * gate_sample",
    ),
]

"""Bugs of attention_8bit, quantize_blocks and quantize_channels."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_TESTS = "test_attention_8bit.py::"
_BUDGET = _TESTS + "test_triton_within_budget[%s-(torch.int8, torch.float8_e4m3fn)]"
_QUANTIZERS = _TESTS + "test_quantizers_in_triton_give_the_reference[torch.int8-14]"
att = partial(Mutation, "attention_8bit", "attention_8bit/triton.py")
blocks = partial(Mutation, "quantize_blocks", "quantize_qkv/triton.py")
channels = partial(Mutation, "quantize_channels", "quantize_qkv/triton.py")
ATTENTION_8BIT = [
    att(
        _TESTS + "test_a_sink_does_not_push_the_other_weights_below_float8[262-8]",
        "weights of 1 at most, not of 256",
        "UP: tl.constexpr = 8.0 if FP8 else 0.0",
        "UP: tl.constexpr = 0.0",
    ),
    att(
        _BUDGET % "5-263",
        "every block of keys takes the scale of the first",
        "tl.load(k_scale + start // GROUP)",
        "tl.load(k_scale + 0 * start)",
    ),
    att(
        _BUDGET % "5-263",
        "the blocks of a head's keys rounded down",
        "k_scale += wide_pair * tl.cdiv(keys, GROUP)",
        "k_scale += wide_pair * (keys // GROUP)",
    ),
    att(
        _BUDGET % "131-33",
        "every block of queries takes the scale of the first",
        "row // GROUP, mask=row < tokens",
        "0 * row, mask=row < tokens",
    ),
    att(
        _BUDGET % "131-33",
        "the channels of all heads take the scales of the first",
        "v_scale + wide_pair * HEAD_DIM + channel",
        "v_scale + 0 * wide_pair + channel",
    ),
    att(
        _BUDGET % "131-33",
        "one key too many in the ragged block",
        "tl.where((key < left)[None, :], logits,",
        "tl.where((key <= left)[None, :], logits,",
    ),
    att(_BUDGET % "5-263", "every block of keys takes the bias of the first", "bias + start, order", "bias, order"),
    att(
        _TESTS + "test_triton_within_budget_as_launched_elsewhere[64-89]",
        "the weights left in the order in which keys were loaded",
        "weights = tl.reshape(apart, [M, N])",
        "weights = weights",
    ),
    att(
        _TESTS + "test_a_fully_masked_sample_gives_zeros[triton]",
        "minus infinity minus itself",
        'origin = tl.where(highest == float("-inf"), 0.0, highest)',
        "origin = highest",
    ),
]
QUANTIZE_QKV = [
    blocks(
        _QUANTIZERS,
        "every head minus the mean of the first",
        "mean + pair * HEAD_DIM + channel",
        "mean + 0 * pair + channel",
    ),
    blocks(
        _QUANTIZERS,
        "what is behind the last token holds minus the mean",
        "tile = tl.where(inside, tile - centre[None, :], 0.0)",
        "tile = tile - centre[None, :]",
    ),
    blocks(
        _QUANTIZERS,
        "multiplied by the scale instead of divided",
        "levels(tile, 1.0 / scale, out)",
        "levels(tile, scale, out)",
    ),
    blocks(
        _QUANTIZERS,
        "the scales of a head written over those of the one before",
        "tl.store(scales + pair * blocks + block, scale)",
        "tl.store(scales + pair + block, scale)",
    ),
    channels(
        _QUANTIZERS,
        "one scale for all channels of a head",
        "torch.linalg.vector_norm(v, math.inf, dim=1).contiguous()",
        "torch.linalg.vector_norm(v, math.inf, dim=(1, 3), keepdim=True)[:, 0].expand_as(scales).contiguous()",
    ),
    channels(
        _QUANTIZERS,
        "the channels of all heads take the scales of the first",
        "largest + pair * HEAD_DIM + channel",
        "largest + 0 * pair + channel",
    ),
    channels(
        _QUANTIZERS,
        "channels as far apart as they have tokens",
        "(pair * HEAD_DIM + channel[:, None]) * room",
        "(pair * HEAD_DIM + channel[:, None]) * tokens",
    ),
    channels(
        _QUANTIZERS,
        "the last token not written",
        "(token < room)[None, :]",
        "(token < tokens - 1)[None, :]",
    ),
]

"""attention_8bit in Triton: attention's online softmax over products of 8-bit queries and keys.

    sums = q k^T (int32, or fp8 in float32) -> * scale of q's block * scale of k's block -> running softmax in powers
    of two -> weights (16 bits, or fp8 times 256) -> acc = acc * decay + weights v -> * scale of v's channel / total

* All scales ride in the exponent's fused multiply-add: one product of the two scales a row and block of keys.
* The blocks of keys are taken from the last to the first, the ragged one first. With weights in fp8 (2^-9 at least) a
  key that takes nearly all, often among the first, would push all keys after it below that; before it they keep their
  digits, and what they have added up to decays in float32. The maximal weight is written as 256, not as 1, for 8 bits
  more below it (arXiv:2606.06521); the sum of the weights is 256 times as large too, and nothing divides by it.
* Ada and Hopper add products of fp8 with about 22 bits. Each block of keys is a sum of its own, and the blocks are
  added in float32 by the multiply-add that makes the past decay, which had to be there anyway (TWO_SUMS).
* Fp8 values lie with the tokens of a channel together, as matrix units read them.
* The lane that holds columns 2t, 2t + 1 and 8 + 2t, 9 + 2t of a product must give 4t ... 4t + 3 to a product of fp8
  weights. Softmax does not care for the order of the keys: with SHUFFLED the keys of 16 are loaded in the order in
  which this needs no exchange between lanes.

Launch shapes in ``launch.py``; each shipped one is in :data:`BUILDS`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.attention.launch import rows, steps
from glimt_kernels.attention.triton import LOG2_E, finish, rows_of
from glimt_kernels.attention_8bit.launch import builds, constants, tiles, tokens_together
from glimt_kernels.dispatch import case_of
from glimt_kernels.eight_bit.triton import to_fp8_grid
from glimt_kernels.triton_env import jit, on_device_of, tl


@jit
def _key_order(BLOCK: tl.constexpr, SHUFFLED: tl.constexpr):
    """Which key of its block each row of a tile holds."""
    row = tl.arange(0, BLOCK)
    if SHUFFLED:
        row = row // 16 * 16 + row % 8 // 2 * 4 + row // 8 % 2 * 2 + row % 2
    return row


@jit
def _keys(k, start, key, left, k_token, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Keys ``start + key`` of one head, [BLOCK, BLOCK_D]; with MASKED, zeros from ``left`` on."""
    channel = tl.arange(0, BLOCK_D)
    at = k + tl.cast(start, tl.int64) * k_token + (key.to(tl.int64)[:, None] * k_token + channel[None, :])
    if MASKED and HEAD_DIM < BLOCK_D:
        tile = tl.load(at, mask=(key < left)[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        tile = tl.load(at, mask=(key < left)[:, None], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        tile = tl.load(at, mask=(channel < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@jit
def _values(
    v,
    start,
    left,
    v_step,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    FP8: tl.constexpr,
):
    """Values ``start ...`` of one head, [BLOCK, BLOCK_D]; with MASKED, zeros from ``left`` on."""
    if FP8:
        token, channel = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
        at = v + start + (channel.to(tl.int64)[:, None] * v_step + token[None, :])
        if MASKED:
            tile = tl.load(at, mask=(channel < HEAD_DIM)[:, None] & (token < left)[None, :], other=0.0)
        elif HEAD_DIM < BLOCK_D:
            tile = tl.load(at, mask=(channel < HEAD_DIM)[:, None], other=0.0)
        else:
            tile = tl.load(at)
        tile = tl.trans(tile)
    else:
        tile = rows_of(v, start, left, v_step, BLOCK, HEAD_DIM, BLOCK_D, MASKED)
    return tile


@jit
def _absorb(total, top, sums, scale, bias, key, left, BIASED: tl.constexpr, MASKED: tl.constexpr, FP8: tl.constexpr):
    """A block of products into the running softmax, ``scale`` for each row: as attention's ``absorb``.

    With FP8 the weights, and the sum of them, are 256 times as large.
    """
    UP: tl.constexpr = 8.0 if FP8 else 0.0
    logits = sums.to(tl.float32)
    if BIASED:
        if MASKED:
            extra = tl.load(bias + key, mask=key < left, other=0.0)
        else:
            extra = tl.load(bias + key)
        logits = logits * scale[:, None] + (extra * 1.4426950408889634)[None, :]
    if MASKED:
        logits = tl.where((key < left)[None, :], logits, float("-inf"))
    if BIASED:
        highest = tl.maximum(top, tl.max(logits, 1))
        # Where every key so far is masked, the maximum is -inf, and -inf - -inf would be NaN.
        origin = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(logits - (origin - UP)[:, None])
    else:
        highest = tl.maximum(top, tl.max(logits, 1) * scale)
        origin = highest
        weights = tl.exp2(logits * scale[:, None] - (origin - UP)[:, None])
    decay = tl.exp2(top - origin)
    return decay, total * decay + tl.sum(weights, 1), highest, weights


@jit
def _narrow(weights, dtype: tl.constexpr, SHUFFLED: tl.constexpr):
    """Weights as the product takes them: in the dtype of the values, and the keys in their own order."""
    M: tl.constexpr = weights.shape[0]
    N: tl.constexpr = weights.shape[1]
    if SHUFFLED:
        apart = tl.permute(tl.reshape(weights, [M, N // 16, 2, 4, 2]), (0, 1, 3, 2, 4))
        weights = tl.reshape(apart, [M, N])
    if dtype.primitive_bitwidth == 8:
        weights = to_fp8_grid(weights)
    return weights.to(dtype)


@jit
def _add(acc, decay, weights, values, TWO_SUMS: tl.constexpr):
    if TWO_SUMS:
        # The last argument keeps the compiler from adding inside the matrix instruction.
        acc = acc * decay[:, None] + tl.dot(weights, values, max_num_imprecise_acc=weights.shape[1])
    else:
        acc = tl.dot(weights, values, acc * decay[:, None])
    return acc


@jit
def _kernel(
    q,
    q_scale,
    k,
    k_scale,
    v,
    v_scale,
    bias,
    out,
    scale,
    tokens,
    keys,
    heads,
    q_sample,
    q_token,
    q_head,
    k_sample,
    k_token,
    k_head,
    v_sample,
    v_head,
    v_step,
    out_sample,
    out_token,
    out_head,
    bias_sample,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BIASED: tl.constexpr,
    TWO_SUMS: tl.constexpr,
    SHUFFLED: tl.constexpr,
):
    FP8: tl.constexpr = v.dtype.element_ty.primitive_bitwidth == 8
    SUMS: tl.constexpr = tl.int32 if q.dtype.element_ty == tl.int8 else tl.float32
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    pair = program // blocks
    sample, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    wide_pair = pair.to(tl.int64)
    first = (program % blocks) * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    q += sample * q_sample + head * q_head
    k += sample * k_sample + head * k_head
    v += sample * v_sample + head * v_head
    bias += sample * bias_sample
    k_scale += wide_pair * tl.cdiv(keys, GROUP)
    row_scale = tl.load(q_scale + wide_pair * tl.cdiv(tokens, GROUP) + row // GROUP, mask=row < tokens, other=1.0)
    row_scale *= scale
    query = rows_of(q, first, tokens - first, q_token, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    order = _key_order(BLOCK_N, SHUFFLED)

    last = (tl.cdiv(keys, BLOCK_N) - 1) * BLOCK_N
    left = keys - last
    key = _keys(k, last, order, left, k_token, HEAD_DIM, BLOCK_D, True)
    sums = tl.dot(query, tl.trans(key), out_dtype=SUMS)
    both = row_scale * tl.load(k_scale + last // GROUP)
    decay, total, top, weights = _absorb(total, top, sums, both, bias + last, order, left, BIASED, True, FP8)
    value = _values(v, last, left, v_step, BLOCK_N, HEAD_DIM, BLOCK_D, True, FP8)
    acc = _add(acc, decay, _narrow(weights, value.dtype, SHUFFLED), value, TWO_SUMS)
    for done in tl.range(0, last, BLOCK_N):
        start = last - BLOCK_N - done
        key = _keys(k, start, order, 0, k_token, HEAD_DIM, BLOCK_D, False)
        sums = tl.dot(query, tl.trans(key), out_dtype=SUMS)
        both = row_scale * tl.load(k_scale + start // GROUP)
        decay, total, top, weights = _absorb(total, top, sums, both, bias + start, order, 0, BIASED, False, FP8)
        value = _values(v, start, 0, v_step, BLOCK_N, HEAD_DIM, BLOCK_D, False, FP8)
        acc = _add(acc, decay, _narrow(weights, value.dtype, SHUFFLED), value, TWO_SUMS)
    if FP8:
        channel = tl.arange(0, BLOCK_D)
        of_channel = tl.load(v_scale + wide_pair * HEAD_DIM + channel, mask=channel < HEAD_DIM, other=0.0)
        acc *= of_channel[None, :]
    out += sample * out_sample + head * out_head
    finish(acc, total, top, out, out, row, tokens, out_token, HEAD_DIM, BLOCK_D, False)


def attention_8bit(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: Tensor | None,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    fits = out is not None and (out.stride(3) == 1 or out.shape[3] == 1)
    result = out if out is not None and fits else torch.empty(q.shape, dtype=dtype, device=q.device)
    if k.shape[1] == 0:
        result.zero_()
    elif result.numel():
        _launch(q, q_scale, k, k_scale, v, v_scale, block, scale, bias, result)
    return result if out is None or fits else out.copy_(result)


def _launch(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    q, k = rows(q), rows(k)
    v = rows(v) if v_scale is None else tokens_together(v)
    bias = None if bias is None else bias.float().contiguous()
    samples, tokens, heads, head_dim = q.shape
    tile = tiles(case_of([q]).arch, q.dtype, v.dtype, head_dim, block)
    with on_device_of(q):
        _kernel[(-(-tokens // tile.queries) * samples * heads,)](
            q,
            q_scale.contiguous(),
            k,
            k_scale.contiguous(),
            v,
            k_scale if v_scale is None else v_scale.contiguous(),
            k_scale if bias is None else bias,
            out,
            scale * LOG2_E,
            tokens,
            k.shape[1],
            heads,
            *steps(q),
            *steps(k),
            v.stride(0),
            v.stride(2),
            v.stride(1) if v_scale is None else v.stride(3),
            *steps(out),
            0 if bias is None else bias.stride(0),
            **constants(tile, head_dim, block, bias is not None),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


BUILDS = list(builds(_kernel))

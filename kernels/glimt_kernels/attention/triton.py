"""attention in Triton: online softmax over blocks of keys (FlashAttention-2), one program a block of queries.

    logits = q k^T -> running maximum and sum in powers of two -> weights -> acc = acc * decay + weights v

The scale, times log2(e), is applied in float32 inside the exponent's fused multiply-add, where it costs nothing;
folding it into q would round q once more. Only one block of keys, the ragged one, is masked. Ways through the keys:

* :func:`attend`: one block after the other, the ragged one first, which leaves the loop fewer registers to keep.
* With matrix units that compute by themselves, and TMA: softmax and products of two different blocks at the same time.
  :func:`attend_values_behind` (sm_90) multiplies a block's weights and values during the softmax of the next;
  :func:`attend_logits_ahead` (sm_100) multiplies the next block's queries and keys during the softmax of this one.

Programs of one head follow each other, so that its keys and values stay in L2. Tiles in ``launch.py``; each shipped
configuration is in :data:`BUILDS`. chunk_attention goes the same ways, and sparse_attention along a list: with GROUP,
the keys counted are those of the blocks of GROUP tokens that ``listed`` names, one behind the other (:func:`place_of`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.attention.launch import Tiles, describable, described, rows, steps, tiles
from glimt_kernels.attention.places import advance, apart, left_at, place_of
from glimt_kernels.dispatch import case_of
from glimt_kernels.triton_env import ARCHS, Build, jit, on_device_of, power_of_2, tl

LOG2_E = math.log2(math.e)


@jit
def rows_of(
    x, start, left, step, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Tokens ``start ...`` of one head, [BLOCK, BLOCK_D]; with MASKED, zeros after the first ``left`` of them."""
    token, channel = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inner = token.to(tl.int64)[:, None] * step + channel[None, :]
    at = x + tl.cast(start, tl.int64) * step + inner
    if MASKED and HEAD_DIM < BLOCK_D:
        rows = tl.load(at, mask=(token < left)[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        rows = tl.load(at, mask=(token < left)[:, None], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        rows = tl.load(at, mask=(channel < HEAD_DIM)[None, :], other=0.0)
    else:
        rows = tl.load(at)
    return rows


@jit
def absorb(total, top, logits, scale, bias, left, BLOCK: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr):
    """A block of logits into the running softmax: what the past decays by, the new sum and maximum, its weights."""
    key = tl.arange(0, BLOCK)
    if BIASED:
        if MASKED:
            extra = tl.load(bias + key, mask=key < left, other=0.0)
        else:
            extra = tl.load(bias + key)
        logits = logits * scale + (extra * 1.4426950408889634)[None, :]
    if MASKED:
        logits = tl.where((key < left)[None, :], logits, float("-inf"))
    if BIASED:
        highest = tl.maximum(top, tl.max(logits, 1))
        # Where every key so far is masked, the maximum is -inf, and -inf - -inf would be NaN.
        origin = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(logits - origin[:, None])
    else:
        highest = tl.maximum(top, tl.max(logits, 1) * scale)
        origin = highest
        weights = tl.exp2(logits * scale - origin[:, None])
    decay = tl.exp2(top - origin)
    return decay, total * decay + tl.sum(weights, 1), highest, weights


@jit
def attend(
    acc,
    total,
    top,
    query,
    k,
    v,
    bias,
    first,
    count,
    k_token,
    v_token,
    scale,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BIASED: tl.constexpr,
    listed=None,
    lengths=None,
    GROUP: tl.constexpr = 0,
    RAGGED: tl.constexpr = False,
):
    """Keys ``first`` to ``first + count``, at least one, into the running softmax of a block of queries.

    ``k`` and ``v`` point at token 0 of this sample and head, ``bias`` at that of key ``first``.
    """
    alone, begin, end = apart(count, BLOCK, RAGGED)
    at = place_of(alone, first, listed, GROUP)
    following = place_of(tl.minimum(begin, count - 1), first, listed, GROUP)
    left = left_at(at, lengths, GROUP, RAGGED) if RAGGED else count - alone
    key = rows_of(k, at, left, k_token, BLOCK, HEAD_DIM, BLOCK_D, not RAGGED)
    logits = tl.dot(query, tl.trans(key), input_precision="ieee")
    decay, total, top, weights = absorb(total, top, logits, scale, bias + alone, left, BLOCK, BIASED, True)
    value = rows_of(v, at, left, v_token, BLOCK, HEAD_DIM, BLOCK_D, not RAGGED)
    acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None], input_precision="ieee")
    for start in tl.range(begin, end, BLOCK):
        at, following = advance(following, start, first, listed, count, BLOCK, GROUP)
        left = left_at(at, lengths, GROUP, RAGGED)
        key = rows_of(k, at, left, k_token, BLOCK, HEAD_DIM, BLOCK_D, False)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee")
        decay, total, top, weights = absorb(total, top, logits, scale, bias + start, left, BLOCK, BIASED, RAGGED)
        value = rows_of(v, at, left, v_token, BLOCK, HEAD_DIM, BLOCK_D, False)
        acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None], input_precision="ieee")
    return acc, total, top


@jit
def attend_values_behind(
    acc,
    total,
    top,
    query,
    k,
    v,
    bias,
    sample,
    head,
    first,
    count,
    scale,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BIASED: tl.constexpr,
    listed=None,
    lengths=None,
    GROUP: tl.constexpr = 0,
    RAGGED: tl.constexpr = False,
):
    """:func:`attend` with TMA descriptors of the whole tensors, and values one block behind keys."""
    alone, begin, end = apart(count, BLOCK, RAGGED)
    at = place_of(alone, first, listed, GROUP)
    left = left_at(at, lengths, GROUP, RAGGED) if RAGGED else count - alone
    key = k.load([sample, at, head, 0]).reshape(BLOCK, BLOCK_D)
    logits = tl.dot(query, tl.trans(key))
    decay, total, top, wide = absorb(total, top, logits, scale, bias + alone, left, BLOCK, BIASED, True)
    weights = wide.to(query.dtype)
    for start in tl.range(begin, end, BLOCK):
        at = place_of(start, first, listed, GROUP)
        key = k.load([sample, at, head, 0]).reshape(BLOCK, BLOCK_D)
        logits = tl.dot(query, tl.trans(key))
        before = place_of(tl.where(start == begin, alone, start - BLOCK), first, listed, GROUP)
        value = v.load([sample, before, head, 0]).reshape(BLOCK, BLOCK_D)
        acc = tl.dot(weights, value, acc * decay[:, None])
        left = left_at(at, lengths, GROUP, RAGGED)
        decay, total, top, wide = absorb(total, top, logits, scale, bias + start, left, BLOCK, BIASED, RAGGED)
        weights = wide.to(query.dtype)
    before = place_of(tl.where(end == begin, alone, end - BLOCK), first, listed, GROUP)
    value = v.load([sample, before, head, 0]).reshape(BLOCK, BLOCK_D)
    return tl.dot(weights, value, acc * decay[:, None]), total, top


@jit
def attend_logits_ahead(
    acc,
    total,
    top,
    query,
    k,
    v,
    bias,
    sample,
    head,
    first,
    count,
    scale,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BIASED: tl.constexpr,
    listed=None,
    lengths=None,
    GROUP: tl.constexpr = 0,
    RAGGED: tl.constexpr = False,
):
    """:func:`attend` with TMA descriptors of the whole tensors, and logits one block ahead; the ragged block last."""
    last = (tl.cdiv(count, BLOCK) - 1) * BLOCK
    key = k.load([sample, place_of(0, first, listed, GROUP), head, 0]).reshape(BLOCK, BLOCK_D)
    logits = tl.dot(query, tl.trans(key))
    for start in tl.range(0, last, BLOCK):
        key = k.load([sample, place_of(start + BLOCK, first, listed, GROUP), head, 0]).reshape(BLOCK, BLOCK_D)
        following = tl.dot(query, tl.trans(key))
        at = place_of(start, first, listed, GROUP)
        left = left_at(at, lengths, GROUP, RAGGED)
        decay, total, top, weights = absorb(total, top, logits, scale, bias + start, left, BLOCK, BIASED, RAGGED)
        value = v.load([sample, at, head, 0]).reshape(BLOCK, BLOCK_D)
        acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None])
        logits = following
    at = place_of(last, first, listed, GROUP)
    left = left_at(at, lengths, GROUP, RAGGED) if RAGGED else count - last
    decay, total, top, weights = absorb(total, top, logits, scale, bias + last, left, BLOCK, BIASED, True)
    value = v.load([sample, at, head, 0]).reshape(BLOCK, BLOCK_D)
    return tl.dot(weights.to(value.dtype), value, acc * decay[:, None]), total, top


@jit
def finish(
    acc, total, top, out, lse, row, tokens, out_token, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, LSE: tl.constexpr
):
    """Write a block of queries: ``acc`` over the sum, zeros where every key was masked; and the log of the sum."""
    channel = tl.arange(0, BLOCK_D)
    inside = (row < tokens)[:, None]
    if HEAD_DIM < BLOCK_D:
        inside = inside & (channel < HEAD_DIM)[None, :]
    total = tl.where(total == 0.0, 1.0, total)  # then acc is 0, and top is -inf
    result = acc * (1.0 / total)[:, None]
    at = out + row.to(tl.int64)[:, None] * out_token + channel[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=inside)
    if LSE:
        tl.store(lse + row, (top + tl.log2(total)) * 0.6931471805599453, mask=row < tokens)


@jit
def _kernel(
    q,
    k,
    v,
    bias,
    out,
    lse,
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
    v_token,
    v_head,
    out_sample,
    out_token,
    out_head,
    bias_sample,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BIASED: tl.constexpr,
    LSE: tl.constexpr,
    WAY: tl.constexpr,
):
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    pair = program // blocks
    sample, head = pair // heads, pair % heads
    first = (program % blocks) * BLOCK_M
    wide_sample, wide_head = sample.to(tl.int64), head.to(tl.int64)
    q += wide_sample * q_sample + wide_head * q_head
    bias += wide_sample * bias_sample
    query = rows_of(q, first, tokens - first, q_token, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if WAY == "values behind":
        acc, total, top = attend_values_behind(
            acc, total, top, query, k, v, bias, sample, head, 0, keys, scale, BLOCK_N, BLOCK_D, BIASED
        )
    elif WAY == "logits ahead":
        acc, total, top = attend_logits_ahead(
            acc, total, top, query, k, v, bias, sample, head, 0, keys, scale, BLOCK_N, BLOCK_D, BIASED
        )
    else:
        k += wide_sample * k_sample + wide_head * k_head
        v += wide_sample * v_sample + wide_head * v_head
        acc, total, top = attend(
            acc, total, top, query, k, v, bias, 0, keys, k_token, v_token, scale, BLOCK_N, HEAD_DIM, BLOCK_D, BIASED
        )
    out += wide_sample * out_sample + wide_head * out_head
    lse += pair.to(tl.int64) * tokens
    finish(acc, total, top, out, lse, first + tl.arange(0, BLOCK_M), tokens, out_token, HEAD_DIM, BLOCK_D, LSE)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor, lse: Tensor | None
) -> None:
    q, k, v = rows(q), rows(k), rows(v)
    bias = None if bias is None else bias.float().contiguous()
    samples, tokens, heads, head_dim = q.shape
    tile = tiles(case_of([q]).arch, q.dtype, head_dim, describable(k) and describable(v))
    with on_device_of(q):
        _kernel[(-(-tokens // tile.queries) * samples * heads,)](
            q,
            *([described(x, tile.keys) for x in (k, v)] if tile.tma else [k, v]),
            q if bias is None else bias,
            out,
            out if lse is None else lse,
            scale * LOG2_E,
            tokens,
            k.shape[1],
            heads,
            *(step for x in (q, k, v, out) for step in steps(x)),
            0 if bias is None else bias.stride(0),
            **constants(tile, head_dim, bias is not None, lse is not None),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def constants(tile: Tiles, head_dim: int, biased: bool, lse: bool) -> dict[str, Any]:
    """The constants of the kernel."""
    return {
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(32, power_of_2(head_dim)),
        "BIASED": biased,
        "LSE": lse,
        "WAY": tile.way,
    }


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None, lse: Tensor | None
) -> Tensor:
    fits = out is not None and (out.stride(3) == 1 or out.shape[3] == 1)
    result = out if out is not None and fits else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if k.shape[1] == 0:
        result.zero_()
        if lse is not None:
            lse.fill_(-math.inf)
    elif result.numel():
        _launch(q, k, v, scale, bias, result, lse)
    return result if out is None or fits else out.copy_(result)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return _attend(q, k, v, scale, bias, out, None)


def attention_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    samples, tokens, heads, _ = q.shape
    lse = torch.empty((samples, heads, tokens), dtype=torch.float32, device=q.device)
    return _attend(q, k, v, scale, bias, out, lse), lse


MATRIX_UNITS = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
UNUSUAL = (33, 72, 80, 200)  # these fill no tile; rows of 72 and 80 are those of image encoders
TRITON_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build(arch: int, dtype: str, head_dim: int, cross: bool, describable: bool = True, lse: bool = True) -> Build:
    """Self-attention, or cross-attention with a bias, which also gives the log of the sum unless ``lse`` is False."""
    tile = tiles(arch, TRITON_DTYPES[dtype], head_dim, describable)
    block = f"tensordesc<{dtype}[1,{tile.keys},1,{head_dim}]>" if tile.tma else f"*{dtype}"
    pointers = {"q": f"*{dtype}", "k": block, "v": block, "bias": "*fp32", "out": f"*{dtype}", "lse": "*fp32"}
    sizes = {"scale": "fp32", **dict.fromkeys(("tokens", "keys", "heads"), "i32"), "bias_sample": "i64"}
    step = "i32" if head_dim % 16 else "i64"  # 64 bits are taken for a multiple of 16
    units = MATRIX_UNITS[arch] if tile.queries >= 64 else "HMMA"  # of 32 queries only a warp's can be asked
    strides = {f"{x}_{axis}": step for x in ("q", "k", "v", "out") for axis in ("sample", "token", "head")}
    return Build(
        op="attention",
        case=f"{dtype} {head_dim} {'cross' if cross else 'self'}"
        + ("" if describable else ", no TMA")
        + ("" if lse else ", no LSE"),
        kernel=_kernel,
        signature={**pointers, **sizes, **strides},
        constants=constants(tile, head_dim, cross, cross and lse),
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
        needs={} if dtype == "fp32" else {arch: (units, *(["UTMALDG"] if tile.tma else []))},
    )


BUILDS = [
    *(
        build(arch, dtype, head_dim, cross)
        for dtype in ("bf16", "fp16")
        for head_dim in (64, 128)
        for cross in (False, True)
        for arch in ARCHS
    ),
    *(build(arch, "bf16", head_dim, True, lse=False) for head_dim in (64, 128) for arch in ARCHS),
    *(build(arch, "bf16", head_dim, True) for head_dim in (32, 96, 256) for arch in ARCHS),
    *(build(arch, "fp16", head_dim, True) for head_dim in (32, 96, 256, *UNUSUAL) for arch in ARCHS),
    *(build(arch, "fp32", head_dim, True) for head_dim in (32, 64, 128, 256) for arch in ARCHS),
    *(build(arch, "bf16", head_dim, True, describable=False) for head_dim in (64, 128) for arch in (90, 100)),
]

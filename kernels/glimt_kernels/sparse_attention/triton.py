"""sparse_attention in Triton: attention's inner loops along the list of each block of queries.

    indptr, indices -> the row's listed blocks, one behind the other -> attention's loop -> out, log of the sum

Nothing is gathered or copied: the address of the next keys is a number read from the list. Tiles are attention's,
none larger than a block of the mask, and in the order of the list, the last block first where attention takes the
ragged one first: a list of all blocks goes through the very operations of attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.attention.call import chip
from glimt_kernels.attention.launch import Tiles, describable, described, rows, steps, tiles
from glimt_kernels.attention.places import advance, apart, left_at, place_of
from glimt_kernels.attention.triton import (
    LOG2_E,
    MATRIX_UNITS,
    TRITON_DTYPES,
    absorb,
    attend,
    attend_logits_ahead,
    attend_values_behind,
    finish,
    rows_of,
)
from glimt_kernels.dispatch import case_of
from glimt_kernels.sparse_attention.mask import check_lists
from glimt_kernels.triton_env import ARCHS, Build, jit, on_device_of, power_of_2, tl


@jit
def _attend_halves(
    total,
    top,
    query,
    k,
    v,
    count,
    k_token,
    v_token,
    scale,
    listed,
    lengths,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """attention's ``attend`` with the values in two halves of HALF channels, as many as there are queries.

    Were the accumulator wider than it has queries, Triton would lay warps along channels, and a softmax across warps.
    """
    low = tl.zeros([query.shape[0], HALF], tl.float32)
    high = tl.zeros([query.shape[0], HALF], tl.float32)
    alone, begin, end = apart(count, BLOCK, RAGGED)
    at = place_of(alone, 0, listed, GROUP)
    following = place_of(tl.minimum(begin, count - 1), 0, listed, GROUP)
    left = left_at(at, lengths, GROUP, RAGGED) if RAGGED else count - alone
    key = rows_of(k, at, left, k_token, BLOCK, HEAD_DIM, 2 * HALF, not RAGGED)
    logits = tl.dot(query, tl.trans(key), input_precision="ieee")
    decay, total, top, wide = absorb(total, top, logits, scale, k, left, BLOCK, False, True)
    weights = wide.to(query.dtype)
    value = rows_of(v, at, left, v_token, BLOCK, HALF, HALF, not RAGGED)
    low = tl.dot(weights, value, low * decay[:, None], input_precision="ieee")
    value = rows_of(v + HALF, at, left, v_token, BLOCK, HEAD_DIM - HALF, HALF, not RAGGED)
    high = tl.dot(weights, value, high * decay[:, None], input_precision="ieee")
    for start in tl.range(begin, end, BLOCK):
        at, following = advance(following, start, 0, listed, count, BLOCK, GROUP)
        left = left_at(at, lengths, GROUP, RAGGED)
        key = rows_of(k, at, left, k_token, BLOCK, HEAD_DIM, 2 * HALF, False)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee")
        decay, total, top, wide = absorb(total, top, logits, scale, k, left, BLOCK, False, RAGGED)
        weights = wide.to(query.dtype)
        value = rows_of(v, at, left, v_token, BLOCK, HALF, HALF, False)
        low = tl.dot(weights, value, low * decay[:, None], input_precision="ieee")
        value = rows_of(v + HALF, at, left, v_token, BLOCK, HEAD_DIM - HALF, HALF, False)
        high = tl.dot(weights, value, high * decay[:, None], input_precision="ieee")
    return low, high, total, top


@jit
def _kernel(
    q,
    k,
    v,
    indptr,
    indices,
    lengths,
    out,
    lse,
    scale,
    tokens,
    keys,
    heads,
    indptr_sample,
    indptr_head,
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
    GROUP: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LSE: tl.constexpr,
    WAY: tl.constexpr,
):
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    pair = program // blocks
    sample, head = pair // heads, pair % heads
    first = (program % blocks) * BLOCK_M
    wide_sample, wide_head = sample.to(tl.int64), head.to(tl.int64)
    indptr += sample * indptr_sample + head * indptr_head + first // GROUP
    begin, end = tl.load(indptr), tl.load(indptr + 1)
    listed = indices + begin
    HALF: tl.constexpr = BLOCK_D // 2
    acc = tl.zeros([BLOCK_M, HALF if WAY == "halves" else BLOCK_D], tl.float32)
    high = tl.zeros([BLOCK_M, HALF], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if begin < end:
        q += wide_sample * q_sample + wide_head * q_head
        query = rows_of(q, first, tokens - first, q_token, BLOCK_M, HEAD_DIM, BLOCK_D, True)
        count = (end - begin) * GROUP
        if not RAGGED:  # of the whole sequence only the last block may lack tokens
            count = tl.minimum(count, count - GROUP + keys - tl.load(indices + end - 1) * GROUP)
        if WAY == "values behind":
            acc, total, top = attend_values_behind(
                acc, total, top, query, k, v, q, sample, head, 0, count, scale, BLOCK_N, BLOCK_D, False,
                listed, lengths, GROUP, RAGGED,
            )  # fmt: skip
        elif WAY == "logits ahead":
            acc, total, top = attend_logits_ahead(
                acc, total, top, query, k, v, q, sample, head, 0, count, scale, BLOCK_N, BLOCK_D, False,
                listed, lengths, GROUP, RAGGED,
            )  # fmt: skip
        elif WAY == "halves":
            k += wide_sample * k_sample + wide_head * k_head
            v += wide_sample * v_sample + wide_head * v_head
            acc, high, total, top = _attend_halves(
                total, top, query, k, v, count, k_token, v_token, scale, listed, lengths,
                BLOCK_N, HEAD_DIM, HALF, GROUP, RAGGED,
            )  # fmt: skip
        else:
            k += wide_sample * k_sample + wide_head * k_head
            v += wide_sample * v_sample + wide_head * v_head
            acc, total, top = attend(
                acc, total, top, query, k, v, q, 0, count, k_token, v_token, scale, BLOCK_N, HEAD_DIM, BLOCK_D, False,
                listed, lengths, GROUP, RAGGED,
            )  # fmt: skip
    out += wide_sample * out_sample + wide_head * out_head
    lse += pair.to(tl.int64) * tokens
    row = first + tl.arange(0, BLOCK_M)
    if WAY == "halves":
        finish(acc, total, top, out, lse, row, tokens, out_token, HALF, HALF, LSE)
        finish(high, total, top, out + HALF, lse, row, tokens, out_token, HEAD_DIM - HALF, HALF, False)
    else:
        finish(acc, total, top, out, lse, row, tokens, out_token, HEAD_DIM, BLOCK_D, LSE)


def launch_shape(
    arch: int, dtype: torch.dtype, head_dim: int, block: int, ragged: bool, describable: bool = True
) -> Tiles:
    """Attention's, but no larger than a block of the mask; half the queries take half the warps."""
    tile = tiles(arch, dtype, head_dim, describable)
    warps = max(4, tile.warps * min(tile.queries, block) // tile.queries)
    tile = tile._replace(queries=min(tile.queries, block), keys=min(tile.keys, block), warps=warps)
    if dtype == torch.float32 and ragged:
        return tile._replace(warps=8)  # lengths take registers: with attention's 4 or 16 warps some chips spill
    halves = tile.way == "plain" and dtype != torch.float32 and chip(arch) not in (90, 100)
    return tile._replace(way="halves") if halves and tile.queries == 64 and 64 < head_dim <= 128 else tile


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    q, k, v = rows(q), rows(k), rows(v)
    samples, tokens, heads, head_dim = q.shape
    tma = describable(k) and describable(v)
    tile = launch_shape(case_of([q]).arch, q.dtype, head_dim, block, lengths is not None, tma)
    with on_device_of(q):
        _kernel[(-(-tokens // tile.queries) * samples * heads,)](
            q,
            *([described(x, tile.keys) for x in (k, v)] if tile.tma else [k, v]),
            indptr,
            indices,
            indices if lengths is None else lengths,
            out,
            out if lse is None else lse,
            scale * LOG2_E,
            tokens,
            k.shape[1],
            heads,
            *(0 if indptr.shape[axis] == 1 else indptr.stride(axis) for axis in (0, 1)),
            *(step for x in (q, k, v, out) for step in steps(x)),
            **_constants(tile, head_dim, block, lengths is not None, lse is not None),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def _constants(tile: Tiles, head_dim: int, block: int, ragged: bool, lse: bool) -> dict[str, Any]:
    return {
        "GROUP": block,
        "RAGGED": ragged,
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(32, power_of_2(head_dim)),
        "LSE": lse,
        "WAY": tile.way,
    }


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor | None,
    lse: Tensor | None,
) -> Tensor:
    fits = out is not None and (out.stride(3) == 1 or out.shape[3] == 1)
    result = out if out is not None and fits else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.is_cuda:
        check_lists(indptr, indices, lengths, block, -(-k.shape[1] // block))
    if indices.numel() == 0:
        result.zero_()
        if lse is not None:
            lse.fill_(-math.inf)
    elif result.numel():
        lengths = None if lengths is None else lengths.contiguous()
        _launch(q, k, v, indptr.contiguous(), indices.contiguous(), lengths, block, scale, result, lse)
    return result if out is None or fits else out.copy_(result)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    return _attend(q, k, v, indptr, indices, lengths, block, scale, out, None)


def sparse_attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    samples, tokens, heads, _ = q.shape
    lse = torch.empty((samples, heads, tokens), dtype=torch.float32, device=q.device)
    return _attend(q, k, v, indptr, indices, lengths, block, scale, out, lse), lse


def _build(arch: int, dtype: str, head_dim: int, block: int, ragged: bool, describable: bool = True) -> Build:
    """The output alone from whole blocks, or also the log of the sum, from blocks with lengths."""
    tile = launch_shape(arch, TRITON_DTYPES[dtype], head_dim, block, ragged, describable)
    keys = f"tensordesc<{dtype}[1,{tile.keys},1,{head_dim}]>" if tile.tma else f"*{dtype}"
    pointers = {"q": f"*{dtype}", "k": keys, "v": keys, "out": f"*{dtype}", "lse": "*fp32"}
    numbers = ("tokens", "keys", "heads", "indptr_sample", "indptr_head")
    strides = (f"{x}_{axis}" for x in ("q", "k", "v", "out") for axis in ("sample", "token", "head"))
    return Build(
        op="sparse_attention",
        case=f"{dtype} {head_dim} block {block}{', lengths' if ragged else ''}{'' if describable else ', no TMA'}",
        kernel=_kernel,
        signature={
            **pointers,
            **dict.fromkeys(("indptr", "indices", "lengths"), "*i32"),
            "scale": "fp32",
            **dict.fromkeys(numbers, "i32"),
            **dict.fromkeys(strides, "i64"),
        },
        constants=_constants(tile, head_dim, block, ragged, ragged),
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
        needs={} if dtype == "fp32" else {arch: (MATRIX_UNITS[arch], *(["UTMALDG"] if tile.tma else []))},
    )


BUILDS = [
    *(
        _build(arch, dtype, head_dim, block, ragged)
        for dtype, ragged in (("bf16", False), ("bf16", True), ("fp16", True))
        for head_dim in (64, 128)
        for block in (64, 128)
        for arch in ARCHS
    ),
    *(_build(arch, "bf16", head_dim, 128, True) for head_dim in (32, 96, 256) for arch in ARCHS),
    *(
        _build(arch, "fp32", head_dim, 128, ragged)
        for ragged in (False, True)
        for head_dim in (32, 64, 128, 256)
        for arch in ARCHS
    ),
    *(_build(arch, "bf16", head_dim, 128, True, describable=False) for head_dim in (64, 128) for arch in (90, 100)),
]

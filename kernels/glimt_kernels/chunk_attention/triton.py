"""chunk_attention in Triton: attention's inner loops over up to three pieces of the cache, read where they lie.

The running softmax goes from piece to piece; the queries are read anew for each, the sink's may be others. By TMA each
piece has descriptors of its own, which end where it ends, so that nothing the cache holds elsewhere is read into a
result; by pointers masks do that, and one loop goes over the pieces, which keeps the registers of one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.attention.call import chip
from glimt_kernels.attention.launch import Tiles, describable, described, rows, steps, tiles
from glimt_kernels.attention.triton import (
    LOG2_E,
    MATRIX_UNITS,
    TRITON_DTYPES,
    attend,
    attend_logits_ahead,
    attend_values_behind,
    finish,
    rows_of,
)
from glimt_kernels.dispatch import Case, case_of
from glimt_kernels.triton_env import ARCHS, Build, jit, on_device_of, power_of_2, tl, triton_reasons

PIECES = 3


@jit
def _described_piece(
    acc,
    total,
    top,
    q,
    first,
    tokens,
    q_token,
    k,
    v,
    sample,
    head,
    count,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WAY: tl.constexpr,
):
    """A piece of ``count`` tokens, perhaps none, by its TMA descriptors into the running softmax."""
    if count > 0:
        query = rows_of(q, first, tokens - first, q_token, BLOCK_M, HEAD_DIM, BLOCK_D, True)
        if WAY == "values behind":
            acc, total, top = attend_values_behind(
                acc, total, top, query, k, v, q, sample, head, 0, count, scale, BLOCK_N, BLOCK_D, False
            )
        else:
            acc, total, top = attend_logits_ahead(
                acc, total, top, query, k, v, q, sample, head, 0, count, scale, BLOCK_N, BLOCK_D, False
            )
    return acc, total, top


@jit
def _kernel(
    q,
    sink_q,
    k0,
    k1,
    k2,
    v0,
    v1,
    v2,
    out,
    scale,
    tokens,
    heads,
    start0,
    start1,
    start2,
    count0,
    count1,
    count2,
    q_sample,
    q_token,
    q_head,
    sink_sample,
    sink_token,
    sink_head,
    k_sample,
    k_token,
    k_head,
    v_sample,
    v_token,
    v_head,
    out_sample,
    out_token,
    out_head,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WAY: tl.constexpr,
):
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    pair = program // blocks
    sample, head = pair // heads, pair % heads
    first = (program % blocks) * BLOCK_M
    wide_sample, wide_head = sample.to(tl.int64), head.to(tl.int64)
    q += wide_sample * q_sample + wide_head * q_head
    sink_q += wide_sample * sink_sample + wide_head * sink_head
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if WAY == "plain":
        k0 += wide_sample * k_sample + wide_head * k_head
        v0 += wide_sample * v_sample + wide_head * v_head
        for piece in tl.range(0, 3, num_stages=1):
            start = tl.where(piece == 0, start0, tl.where(piece == 1, start1, start2))
            count = tl.where(piece == 0, count0, tl.where(piece == 1, count1, count2))
            if count > 0:
                token_step = tl.where(piece == 0, tl.cast(sink_token, tl.int64), tl.cast(q_token, tl.int64))
                source = sink_q if piece == 0 else q
                query = rows_of(source, first, tokens - first, token_step, BLOCK_M, HEAD_DIM, BLOCK_D, True)
                acc, total, top = attend(
                    acc,
                    total,
                    top,
                    query,
                    k0,
                    v0,
                    q,
                    start,
                    count,
                    k_token,
                    v_token,
                    scale,
                    BLOCK_N,
                    HEAD_DIM,
                    BLOCK_D,
                    False,
                )
    else:
        acc, total, top = _described_piece(
            acc,
            total,
            top,
            sink_q,
            first,
            tokens,
            sink_token,
            k0,
            v0,
            sample,
            head,
            count0,
            scale,
            BLOCK_M,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_D,
            WAY,
        )
        acc, total, top = _described_piece(
            acc,
            total,
            top,
            q,
            first,
            tokens,
            q_token,
            k1,
            v1,
            sample,
            head,
            count1,
            scale,
            BLOCK_M,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_D,
            WAY,
        )
        acc, total, top = _described_piece(
            acc,
            total,
            top,
            q,
            first,
            tokens,
            q_token,
            k2,
            v2,
            sample,
            head,
            count2,
            scale,
            BLOCK_M,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_D,
            WAY,
        )
    out += wide_sample * out_sample + wide_head * out_head
    finish(acc, total, top, out, out, first + tl.arange(0, BLOCK_M), tokens, out_token, HEAD_DIM, BLOCK_D, False)


def launch_shape(arch: int, dtype: torch.dtype, head_dim: int, describable: bool = True) -> Tiles:
    """Attention's, but where its blocks would spill beside what the pieces need (README.md)."""
    known = chip(arch)
    if head_dim > 128 and dtype == torch.float32:
        return Tiles(32, 16, 16, 2)
    if head_dim > 128:
        return Tiles(32, 16 if known in (86, 89) else 32, 8, 2)
    tile = tiles(arch, dtype, head_dim, describable)
    spills = tile.way == "plain" and (head_dim <= 64 or known in (100, 120))
    return tile._replace(keys=min(tile.keys, 32)) if spills else tile


def reasons(case: Case) -> list[str]:
    found = triton_reasons(case)
    if case.sizes and case.sizes[0] > 256:
        found.append(f"it takes a head_dim of at most 256, found {case.sizes[0]}")
    elif case.sizes and case.sizes[0] % 16:
        found.append(f"it takes a head_dim in steps of 16, as others spill beside the pieces; found {case.sizes[0]}")
    return found


def chunk_attention(
    q: Tensor,
    sink_q: Tensor | None,
    k: Tensor,
    v: Tensor,
    spans: Sequence[int],
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    fits = out is not None and (out.stride(3) == 1 or out.shape[3] == 1)
    result = out if out is not None and fits else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not spans:
        result.zero_()
    elif result.numel():
        _launch(rows(q), rows(q if sink_q is None else sink_q), rows(k), rows(v), spans, scale, result)
    return result if out is None or fits else out.copy_(result)


def _launch(q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, spans: Sequence[int], scale: float, out: Tensor) -> None:
    starts, counts = list(spans[::2]), list(spans[1::2])
    missing = PIECES - len(starts)
    samples, tokens, heads, head_dim = q.shape
    tile = launch_shape(case_of([q]).arch, q.dtype, head_dim, describable(k) and describable(v))
    # A piece that is not there is described as the first, and never read.
    pieces = [*zip(starts, counts, strict=True), *[(starts[0], counts[0])] * missing]
    with on_device_of(q):
        _kernel[(-(-tokens // tile.queries) * samples * heads,)](
            q,
            sink_q,
            *(described(x[:, s : s + n], tile.keys) if tile.tma else x for x in (k, v) for s, n in pieces),
            out,
            scale * LOG2_E,
            tokens,
            heads,
            *starts,
            *[0] * missing,
            *counts,
            *[0] * missing,
            *(step for x in (q, sink_q, k, v, out) for step in steps(x)),
            **_constants(tile, head_dim),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def _constants(tile: Tiles, head_dim: int) -> dict[str, Any]:
    width = max(32, power_of_2(head_dim))
    return {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "HEAD_DIM": head_dim, "BLOCK_D": width, "WAY": tile.way}


def _build(arch: int, dtype: str, head_dim: int, describable: bool = True) -> Build:
    tile = launch_shape(arch, TRITON_DTYPES[dtype], head_dim, describable)
    block = f"tensordesc<{dtype}[1,{tile.keys},1,{head_dim}]>" if tile.tma else f"*{dtype}"
    pieces = {f"{x}{i}": block for x in ("k", "v") for i in range(PIECES)}
    numbers = ("tokens", "heads", *(f"{x}{i}" for x in ("start", "count") for i in range(PIECES)))
    strides = [f"{x}_{axis}" for x in ("q", "sink", "k", "v", "out") for axis in ("sample", "token", "head")]
    units = MATRIX_UNITS[arch] if tile.queries >= 64 else "HMMA"  # of 32 queries only a warp's instruction can be asked
    return Build(
        op="chunk_attention",
        case=f"{dtype} {head_dim}{'' if describable else ', no TMA'}",
        kernel=_kernel,
        signature={
            **dict.fromkeys(("q", "sink_q", "out"), f"*{dtype}"),
            **pieces,
            "scale": "fp32",
            **dict.fromkeys(numbers, "i32"),
            **dict.fromkeys(strides, "i64"),
        },
        constants=_constants(tile, head_dim),
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
        needs={} if dtype == "fp32" else {arch: (units, *(["UTMALDG"] if tile.tma else []))},
    )


BUILDS = [
    *(_build(arch, dtype, head_dim) for dtype in ("bf16", "fp16") for head_dim in (64, 128) for arch in ARCHS),
    *(_build(arch, dtype, head_dim) for dtype in ("bf16", "fp16") for head_dim in (96, 256) for arch in ARCHS),
    *(_build(arch, "bf16", 32) for arch in ARCHS),
    *(_build(arch, "fp32", head_dim) for head_dim in (64, 128, 256) for arch in ARCHS),
    *(_build(arch, "bf16", head_dim, describable=False) for head_dim in (64, 128) for arch in (90, 100)),
]

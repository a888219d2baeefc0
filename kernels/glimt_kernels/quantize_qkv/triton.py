"""quantize_blocks and quantize_channels in Triton: one program a block of tokens of one head.

Bytes, X = B N heads head_dim elements of 16 bits: quantize_blocks 1.5 (2 X): read once, written in half the bytes;
quantize_channels 2.5 (2 X), since the largest value of a channel is known only after all its tokens were read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.attention.launch import rows, steps
from glimt_kernels.attention.triton import rows_of
from glimt_kernels.eight_bit.triton import FORMAT_ARCHS, POINTERS, levels, magnitude, scale_of
from glimt_kernels.outputs import each, place
from glimt_kernels.quantize_qkv.reference import empty_tokens_last
from glimt_kernels.triton_env import Build, jit, on_device_of, power_of_2, tl

# Tokens of a program of quantize_channels.
CHANNEL_BLOCK = 128


@jit
def _of_head(x, blocks, heads, x_sample, x_head):
    """(``x`` at this program's head, its pair of sample and head, its block)."""
    program = tl.program_id(0)
    pair, block = (program // blocks).to(tl.int64), program % blocks
    return x + (pair // heads) * x_sample + (pair % heads) * x_head, pair, block


@jit
def _blocks_kernel(
    x,
    mean,
    out,
    scales,
    blocks,
    tokens,
    heads,
    x_sample,
    x_token,
    x_head,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CENTRED: tl.constexpr,
):
    x, pair, block = _of_head(x, blocks, heads, x_sample, x_head)
    first = block * BLOCK
    tile = rows_of(x, first, tokens - first, x_token, BLOCK, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    token, channel = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inside = (token < tokens)[:, None] & (channel < HEAD_DIM)[None, :]
    if CENTRED:
        centre = tl.load(mean + pair * HEAD_DIM + channel, mask=channel < HEAD_DIM, other=0.0).to(tl.float32)
        tile = tl.where(inside, tile - centre[None, :], 0.0)
    scale = scale_of(tl.max(magnitude(tile)), out)
    head, sample = pair % heads, pair // heads
    at = out + ((sample * tokens + token.to(tl.int64)[:, None]) * heads + head) * HEAD_DIM + channel[None, :]
    tl.store(at, levels(tile, 1.0 / scale, out), mask=inside)
    tl.store(scales + pair * blocks + block, scale)


@jit
def _channels_kernel(
    x,
    largest,
    out,
    scales,
    blocks,
    tokens,
    heads,
    x_sample,
    x_token,
    x_head,
    room,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    x, pair, block = _of_head(x, blocks, heads, x_sample, x_head)
    first = block * BLOCK
    tile = rows_of(x, first, tokens - first, x_token, BLOCK, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    channel, token = tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK)
    known = channel < HEAD_DIM
    highest = tl.load(largest + pair * HEAD_DIM + channel, mask=known, other=0.0).to(tl.float32)
    scale = scale_of(magnitude(highest), out)
    level = tl.trans(levels(tile, (1.0 / scale)[None, :], out))
    at = out + (pair * HEAD_DIM + channel[:, None]) * room + token[None, :]
    # Up to the end of the room, where the tile is zero: whole words are written.
    tl.store(at, level, mask=known[:, None] & (token < room)[None, :])
    tl.store(scales + pair * HEAD_DIM + channel, scale, mask=known & (block == 0))


def warps(block: int, head_dim: int) -> int:
    """Warps of a program: 32 elements of its tile a thread."""
    return min(16, max(1, block * power_of_2(head_dim) // 1024))


def _constants(head_dim: int, block: int) -> dict[str, int]:
    return {"HEAD_DIM": head_dim, "BLOCK": block, "BLOCK_D": power_of_2(head_dim)}


def quantize_blocks(
    x: Tensor,
    mean: Tensor | None,
    block: int,
    dtype: torch.dtype,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    x = rows(x)
    samples, tokens, heads, head_dim = x.shape
    blocks = -(-tokens // block)
    levels, of_blocks = each(out, 2)
    levels = place(levels, x.shape, dtype, x.device)
    scales = place(of_blocks, (samples, heads, blocks), torch.float32, x.device)
    if levels.numel():
        with on_device_of(x):
            _blocks_kernel[(samples * heads * blocks,)](
                x,
                scales if mean is None else mean.contiguous(),
                levels,
                scales,
                blocks,
                tokens,
                heads,
                *steps(x),
                **_constants(head_dim, block),
                CENTRED=mean is not None,
                num_warps=warps(block, head_dim),
            )
    return levels, scales


def quantize_channels(v: Tensor, out: Sequence[Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
    v = rows(v)
    samples, tokens, heads, head_dim = v.shape
    # Levels are always written to memory of their own: behind the last token of a channel there is more to write.
    levels = empty_tokens_last(v, torch.float8_e4m3fn)
    scales = place(each(out, 2)[1], (samples, heads, head_dim), torch.float32, v.device)
    if not v.numel():
        return levels, scales.fill_(2.0**-100 / 448.0)
    largest = torch.linalg.vector_norm(v, math.inf, dim=1).contiguous()
    blocks = -(-tokens // CHANNEL_BLOCK)
    with on_device_of(v):
        _channels_kernel[(samples * heads * blocks,)](
            v,
            largest,
            levels,
            scales,
            blocks,
            tokens,
            heads,
            *steps(v),
            -(-tokens // 16) * 16,
            **_constants(head_dim, CHANNEL_BLOCK),
            num_warps=warps(CHANNEL_BLOCK, head_dim),
        )
    return levels, scales


def _build(op: str, head_dim: int, dtype: torch.dtype, block: int) -> Build:
    of_blocks = op == "quantize_blocks"
    others = {"mean": "*fp32"} if of_blocks else {"largest": "*bf16", "room": "i64"}
    name = "int8" if dtype == torch.int8 else "fp8"
    return Build(
        op=op,
        case=f"bf16 {head_dim} {name} block {block}" if of_blocks else f"bf16 {head_dim}",
        kernel=_blocks_kernel if of_blocks else _channels_kernel,
        signature={
            "x": "*bf16",
            "out": POINTERS[dtype],
            "scales": "*fp32",
            **others,
            **dict.fromkeys(("blocks", "tokens", "heads"), "i32"),
            **dict.fromkeys(("x_sample", "x_token", "x_head"), "i64"),
        },
        constants=_constants(head_dim, block) | ({"CENTRED": True} if of_blocks else {}),
        num_warps=warps(block, head_dim),
        archs=FORMAT_ARCHS[dtype],
        wide=True,
    )


BUILDS = [
    *(
        _build("quantize_blocks", head_dim, dtype, block)
        for head_dim, block in ((64, 128), (128, 64), (128, 128))
        for dtype in (torch.int8, torch.float8_e4m3fn)
    ),
    *(_build("quantize_channels", head_dim, torch.float8_e4m3fn, CHANNEL_BLOCK) for head_dim in (64, 128)),
]

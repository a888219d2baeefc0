"""Convolutions in Triton: implicit GEMM over activations with channels innermost.

    pixels of one frame x output channels, K = taps x channels in steps -> + bias (+ plus) -> stored
                                                                        (-> norm over channels -> SiLU -> stored)

A program holds M_TILE pixels of one frame and N output channels, so that which frame a tap reads, of ``past`` or of
``x``, is one choice for all of them: ``past`` is read in place, and the frames before it are not multiplied at all.
Which of a pixel's neighbours exist is a bit each, found once; in the loop a bit is tested, and what is outside the
picture comes as zeros. Channels are in parts of powers of two (96 = 64 + 32, 192 = 128 + 64, 384 = 3 x 128), each with
accumulators of its own: nothing is multiplied that is thrown away.

Output channels may be in groups of N that go to different places (PLACE): "frames" in turn, which doubles time, or
the four "pixels" of a pixel, which doubles height and width (../upsample_conv). Programs of the same pixels follow
each other, and then those of the other frames, whose taps read the same frames: x comes from L2.

Bytes: x, weight, plus and the outputs once. Launch shapes in ``tiles.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.causal_conv3d import tiles
from glimt_kernels.causal_conv3d.call import empty, frames_dense, result_shape
from glimt_kernels.causal_conv3d.tiles import Layer
from glimt_kernels.linear_quant.tiles import arch_of
from glimt_kernels.triton_env import jit, on_device_of, tl


@jit
def _neighbours(row, column, inside, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A bit for each of ROWS x COLUMNS neighbours, the first at (row, column): whether it is in the picture."""
    seen = tl.zeros_like(row)
    for down in tl.static_range(ROWS):
        for right in tl.static_range(COLUMNS):
            there = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
            seen |= (there & inside).to(tl.int32) << (down * COLUMNS + right)
    return seen


@jit
def _load(at, rows, columns, ROWS_MASKED: tl.constexpr, COLUMNS_MASKED: tl.constexpr):
    """A block of which some rows and columns may not be there: zeros."""
    if ROWS_MASKED and COLUMNS_MASKED:
        value = tl.load(at, mask=rows[:, None] & columns[None, :], other=0.0)
    elif ROWS_MASKED:
        value = tl.load(at, mask=rows[:, None], other=0.0)
    elif COLUMNS_MASKED:
        value = tl.load(at, mask=columns[None, :], other=0.0)
    else:
        value = tl.load(at)
    return value


@jit
def _store(at, value, rows, columns, COLUMNS_MASKED: tl.constexpr):
    narrow = value.to(at.dtype.element_ty)
    if COLUMNS_MASKED:
        tl.store(at, narrow, mask=rows[:, None] & columns[None, :])
    else:
        tl.store(at, narrow, mask=rows[:, None])


@jit
def _finish(
    sums,
    bias,
    plus,
    gamma,
    out,
    normed,
    inside,
    left,
    root,
    N_PARTS: tl.constexpr,
    N_STARTS: tl.constexpr,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    PLUS: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Bias, residual and norm on accumulators of ``left`` channels; each tensor at its first one, of each pixel."""
    values = ()
    squares = tl.zeros_like(inside).to(tl.float32)
    for part in tl.static_range(len(N_PARTS)):
        n = N_STARTS[part] + tl.arange(0, tl.constexpr(N_PARTS[part]))
        there = n < left
        value = sums[part]
        if BIASED:
            value += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[None, :]
        if PLUS:
            value += _load(plus + n[None, :], inside, there, True, MASKED).to(tl.float32)
        if KEEP:
            _store(out + n[None, :], value, inside, there, MASKED)
        if NORM:  # of what is stored, or would be
            value = value.to(normed.dtype.element_ty).to(tl.float32)
            squares += tl.sum(value * value, 1)
        values = values + (value,)  # type: ignore[assignment]  # noqa: RUF005
    if NORM:
        norm = tl.sqrt(squares)
        # Not the maximum of both: a NaN must stay one.
        factor = (root / tl.where(norm < 1e-12, 1e-12, norm))[:, None]
        for part in tl.static_range(len(N_PARTS)):
            n = N_STARTS[part] + tl.arange(0, tl.constexpr(N_PARTS[part]))
            y = values[part] * factor * tl.load(gamma + n, mask=n < left, other=0.0).to(tl.float32)[None, :]
            _store(normed + n[None, :], y / (1.0 + tl.exp(-y)), inside, n < left, MASKED)


@jit
def convolve(
    x,
    past,
    weight,
    bias,
    plus,
    gamma,
    out,
    normed,
    frames,
    height,
    width,
    known,
    x_sample,
    x_frame,
    past_sample,
    past_frame,
    plus_sample,
    plus_frame,
    root,
    M_TILE: tl.constexpr,
    K_PARTS: tl.constexpr,
    N_PARTS: tl.constexpr,
    K_STARTS: tl.constexpr,
    N_STARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    TIMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    PLACE: tl.constexpr,
    BIASED: tl.constexpr,
    PLUS: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    N_TILE: tl.constexpr = N_STARTS[len(N_PARTS)]
    K_TILE: tl.constexpr = K_STARTS[len(K_PARTS)]
    ACROSS: tl.constexpr = (N + N_TILE - 1) // N_TILE
    program = tl.program_id(0)
    n_tile, group = program % ACROSS, program // ACROSS % GROUPS
    program //= ACROSS * GROUPS
    frame = program % frames
    program //= frames
    down = tl.cdiv(height * width, M_TILE)
    sample = (program // down).to(tl.int64)
    pixel = program % down * M_TILE + tl.arange(0, M_TILE)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width

    top, left = ROWS // 2, COLUMNS // 2
    if PLACE == "pixels":
        top -= group // 2
        left -= group % 2
    seen = _neighbours(row - top, column - left, inside, height, width, ROWS, COLUMNS)
    at = (pixel - top * width - left).to(tl.int64)[:, None] * CHANNELS
    x += sample * x_sample
    past += sample * past_sample
    SPACE: tl.constexpr = ROWS * COLUMNS
    BLOCKS: tl.constexpr = (CHANNELS + K_TILE - 1) // K_TILE
    K: tl.constexpr = TIMES * SPACE * CHANNELS
    first = n_tile * N_TILE
    weight += (group * N + first).to(tl.int64) * K

    sums = ()
    for part in tl.static_range(len(N_PARTS)):
        sums = sums + (tl.zeros([M_TILE, tl.constexpr(N_PARTS[part])], tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    begin = tl.maximum(TIMES - 1 - known - frame, 0) * SPACE * BLOCKS
    for k in tl.range(begin, TIMES * SPACE * BLOCKS):
        tap = k // BLOCKS
        space, start = tap % SPACE, k % BLOCKS * K_TILE
        time = frame + tap // SPACE - (TIMES - 1)
        source = x + time.to(tl.int64) * x_frame
        if TIMES > 1:
            source = tl.where(time < 0, past + (known + time).to(tl.int64) * past_frame, source)
        source += (space // COLUMNS * width + space % COLUMNS) * CHANNELS + start
        there = ((seen >> space) & 1) > 0
        for k_part in tl.static_range(len(K_PARTS)):
            step = K_STARTS[k_part] + tl.arange(0, tl.constexpr(K_PARTS[k_part]))
            a = _load(source + at + step[None, :], there, step < CHANNELS - start, True, CHANNELS % K_TILE > 0)
            following = ()
            for part in tl.static_range(len(N_PARTS)):
                n = N_STARTS[part] + tl.arange(0, tl.constexpr(N_PARTS[part]))
                b_at = weight + n[None, :] * K + (tap * CHANNELS + start) + step[:, None]
                b = _load(b_at, step < CHANNELS - start, n < N - first, CHANNELS % K_TILE > 0, N % N_TILE > 0)
                following = following + (tl.dot(a, b, sums[part], input_precision="tf32x3"),)  # type: ignore[assignment]  # noqa: RUF005
            sums = following

    # Where this goes, counted in frames and in pixels of a frame.
    area = height * width
    if PLACE == "frames":
        frame = frame * GROUPS + group
        frames *= GROUPS
        bias += group * N
    if PLACE == "pixels":
        pixel = (2 * row + group // 2) * (2 * width) + 2 * column + group % 2
        area *= 4
    to = ((sample * frames + frame) * area + pixel)[:, None] * N + first
    plus += sample * plus_sample + frame.to(tl.int64) * plus_frame
    plus_at = pixel.to(tl.int64)[:, None] * N + first
    _finish(
        sums,
        bias + first,
        plus + plus_at,
        gamma,
        out + to,
        normed + to,
        inside,
        N - first,
        root,
        N_PARTS,
        N_STARTS,
        N % N_TILE > 0,
        BIASED,
        PLUS,
        NORM,
        KEEP,
    )


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    *,
    place: str = "plain",
    past: Tensor | None = None,
    plus: Tensor | None = None,
    normed: tuple[Tensor, Tensor] | None = None,
    arch: int | None = None,
) -> None:
    """Launch the kernel.

    Args:
        x: [B, C, F, H, W].
        weight: [groups x N, C, taps in time, rows, columns].
        bias: [groups x N], for the four pixels of a pixel [N].
        out: where the result is written, channels innermost; None, with ``normed``, if nowhere.
        place: where the groups of output channels go (``tiles.Layer``).
        normed: gamma [N], and where the norm of the result with SiLU is written.
        arch: the chip, if not that of ``x``; for tests.
    """
    samples, _, frames, height, width = x.shape
    layer = tiles.layer_of(weight, place)
    epilogue = {"bias": bias is not None, "plus": plus is not None, "norm": normed is not None}
    chip = arch_of(x) if arch is None else arch
    constants, options = tiles.launch(chip, x.dtype, layer, **epilogue, keep=out is not None)
    x, weight = frames_dense(x), weight.contiguous(memory_format=torch.channels_last_3d)
    before = x if past is None or not past.shape[2] else frames_dense(past)
    stream = x if plus is None else frames_dense(plus)
    gamma, target = (x, x) if normed is None else normed
    down, across = -(-height * width // constants["M_TILE"]), -(-layer.n // constants["N_STARTS"][-1])
    with on_device_of(x):
        convolve[(samples * down * frames * layer.groups * across,)](
            x,
            before,
            weight,
            x if bias is None else bias.contiguous(),
            stream,
            gamma.contiguous(),
            target if out is None else out,
            target,
            frames,
            height,
            width,
            0 if past is None else past.shape[2],
            *(step for t in (x, before, stream) for step in (t.stride(0), t.stride(2))),
            layer.n**0.5,
            **constants,
            **options,
        )


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
    *,
    arch: int | None = None,
) -> Tensor:
    """``arch``: the chip, if not that of ``x``; for tests."""
    out = empty(result_shape(x, weight, interleave), x)
    if out.numel():
        place = "frames" if interleave else "plain"
        run(x, weight, bias, out, place=place, past=past, plus=plus, arch=arch)
    return out


def causal_conv3d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    keep: bool = True,
    *,
    arch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``arch``: the chip, if not that of ``x``; for tests."""
    shape = result_shape(x, weight)
    normed, out = empty(shape, x), empty(shape, x) if keep else None
    if normed.numel():
        run(x, weight, bias, out, past=past, plus=plus, normed=(gamma, normed), arch=arch)
    return normed, x.new_empty(0) if out is None else out


BUILDS = [
    *tiles.builds(convolve, "causal_conv3d", "96", Layer(96, 96), plus=True),
    *tiles.builds(convolve, "causal_conv3d", "192", Layer(192, 192), plus=True),
    *tiles.builds(convolve, "causal_conv3d", "384", Layer(384, 384), plus=True),
    *tiles.builds(convolve, "causal_conv3d", "time 384", Layer(384, 384, (3, 1, 1), "frames")),
    *tiles.builds(convolve, "causal_conv3d", "1x1x1 192 to 384", Layer(192, 384, (1, 1, 1))),
    *tiles.builds(convolve, "causal_conv3d", "96 to 3", Layer(96, 3)),  # the picture
    *tiles.builds(convolve, "causal_conv3d", "96", Layer(96, 96), torch.float32, plus=True),
    *(
        build
        for n in (96, 192, 384, 256)  # Wan 2.1; 2.2
        for build in tiles.builds(convolve, "causal_conv3d_norm", str(n), Layer(n, n), plus=True, norm=True)
    ),
]

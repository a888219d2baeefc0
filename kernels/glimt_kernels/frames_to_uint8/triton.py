"""frames_to_uint8, frames_to_nv12 and frames_to_yuv420 in Triton: one program a run of pixels, or a tile of line pairs.

RGB from planes: 16 pixels become 48 bytes, which are put together as words: three bytes of a pixel in one, four pixels
in three, and four of these again, so that loads and stores are of 128 bits. Lines that lie together are one line, and
pixels whose channels lie together (channels-last memory) are a run of values that only change their format.

Bytes, P pixels: 3 P values read, 3 P bytes written (NV12, planes: 1.5 P). The floor is the copy rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.outputs import place
from glimt_kernels.triton_env import Build, jit, on_device_of, tl

# Pixels of a program (values, in channels-last memory), and the tile of an NV12 program: pairs of lines, pixels.
RUN = 2048
PAIRS, COLUMNS = 4, 512
WARPS = 4


@jit
def _unit(x):
    """From [-1, 1] to [0, 1]; above 1 it is cut later. A NaN becomes 0 (no maximum: the interpreter's keeps it)."""
    unit = x.to(tl.float32) * 0.5 + 0.5
    return tl.where(unit > 0.0, unit, 0.0)


@jit
def _level(x):
    """0 to 255. The minimum stands between product and sum so that they are not fused: the product must be rounded."""
    return (tl.minimum(_unit(x) * 255.0, 255.0) + 12582912.0).to(tl.int32, bitcast=True) & 255


@jit
def _fourths(x):
    """[4 n] -> elements 0, 1, 2, 3 of each four, [n] each."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0] // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@jit
def _four(a, b, c, d):
    """[n] each -> [n, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@jit
def _kernel(
    pixels,
    out,
    lines,
    frames,
    step_b,
    step_c,
    step_f,
    step_h,
    step_w,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PACKED: tl.constexpr,
):
    RUNS: tl.constexpr = ((3 if PACKED else 1) * WIDTH + BLOCK - 1) // BLOCK
    line = (tl.program_id(0) // RUNS).to(tl.int64)
    start = (tl.program_id(0) % RUNS) * BLOCK
    frame = line // lines
    base = pixels + frame // frames * step_b + frame % frames * step_f + line % lines * step_h
    index = start + tl.arange(0, BLOCK)
    if PACKED:
        inside = index < 3 * WIDTH
        level = _level(tl.load(base + index, mask=inside, other=0.0))
        tl.store(out + line * WIDTH * 3 + index, level.to(tl.uint8), mask=inside)
    else:
        inside = index < WIDTH
        at = index.to(tl.int64) * step_w
        r = _level(tl.load(base + at, mask=inside, other=0.0))
        g = _level(tl.load(base + (step_c + at), mask=inside, other=0.0))
        b = _level(tl.load(base + (2 * step_c + at), mask=inside, other=0.0))
        if WIDTH % 4 == 0:
            p0, p1, p2, p3 = _fourths(r | (g << 8) | (b << 16))
            a0, a1, a2, a3 = _fourths(p0 | (p1 << 24))
            b0, b1, b2, b3 = _fourths((p1 >> 8) | (p2 << 16))
            c0, c1, c2, c3 = _fourths((p2 >> 16) | (p3 << 8))
            row = tl.arange(0, BLOCK // 16)[:, None] * 12 + tl.arange(0, 4)[None, :]
            row += start // 16 * 12
            words: tl.constexpr = WIDTH // 4 * 3
            to = out.to(tl.pointer_type(tl.int32), bitcast=True) + line * words + row
            tl.store(to, _four(a0, b0, c0, a1), mask=row < words)
            tl.store(to + 4, _four(b1, c1, a2, b2), mask=row + 4 < words)
            tl.store(to + 8, _four(c2, a3, b3, c3), mask=row + 8 < words)
        else:
            to = out + line * WIDTH * 3 + index * 3
            tl.store(to, r.to(tl.uint8), mask=inside)
            tl.store(to + 1, g.to(tl.uint8), mask=inside)
            tl.store(to + 2, b.to(tl.uint8), mask=inside)


@jit
def _rounded(x):
    return ((x + 12582912.0).to(tl.int32, bitcast=True) & 255).to(tl.uint8)


@jit
def _line(base, at, step_c, inside):
    r = tl.minimum(_unit(tl.load(base + at, mask=inside, other=0.0)), 1.0)
    g = tl.minimum(_unit(tl.load(base + (step_c + at), mask=inside, other=0.0)), 1.0)
    b = tl.minimum(_unit(tl.load(base + (2 * step_c + at), mask=inside, other=0.0)), 1.0)
    return r, b, 0.2126 * r + 0.7152 * g + 0.0722 * b


@jit
def _halves(x):
    """The sum of neighbours, [m, 2 n] -> [m, n]."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    return even + odd


@jit
def _nv12_kernel(
    pixels,
    out,
    frames,
    step_b,
    step_c,
    step_f,
    step_h,
    step_w,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANAR: tl.constexpr,
):
    RUNS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = RUNS * ((HEIGHT // 2 + PAIRS - 1) // PAIRS)
    frame = (tl.program_id(0) // TILES).to(tl.int64)
    tile = tl.program_id(0) % TILES
    pair = (tile // RUNS) * PAIRS + tl.arange(0, PAIRS)[:, None]
    column = (tile % RUNS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (pair < HEIGHT // 2) & (column < WIDTH)
    base = pixels + frame // frames * step_b + frame % frames * step_f
    at = (2 * pair).to(tl.int64) * step_h + column.to(tl.int64) * step_w
    to = out + frame * (HEIGHT // 2 * 3) * WIDTH
    upper = to + (2 * pair).to(tl.int64) * WIDTH + column
    r, b, y = _line(base, at, step_c, inside)
    tl.store(upper, _rounded(219.0 * y + 16.0), mask=inside)
    red, blue, luma = _halves(r), _halves(b), _halves(y)
    r, b, y = _line(base, at + step_h, step_c, inside)
    tl.store(upper + WIDTH, _rounded(219.0 * y + 16.0), mask=inside)
    red, blue, luma = red + _halves(r), blue + _halves(b), luma + _halves(y)
    # Sums of four: 224 / 4 / (2 (1 - 0.0722)) and 224 / 4 / (2 (1 - 0.2126)).
    cb = _rounded((blue - luma) * 30.17891787023065 + 128.0)
    cr = _rounded((red - luma) * 35.5600711201422 + 128.0)
    if PLANAR:
        # Both planes in one store, so that its lanes hold sixteen neighbours of one of them.
        HALF: tl.constexpr = WIDTH // 2
        both = tl.permute(tl.join(cb, cr), (2, 0, 1))
        second = tl.arange(0, 2)[:, None, None] * (HEIGHT // 2 * HALF)
        line = ((tile // RUNS) * PAIRS + tl.arange(0, PAIRS))[None, :, None]
        half = ((tile % RUNS) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2))[None, None, :]
        plane = to + HEIGHT * WIDTH + (second + line * HALF + half)
        tl.store(plane, both, mask=(line < HEIGHT // 2) & (half < HALF))
    else:
        both = tl.reshape(tl.join(cb, cr), [PAIRS, COLUMNS])
        tl.store(to + (HEIGHT + pair).to(tl.int64) * WIDTH + column, both, mask=inside)


def frames_to_uint8(pixels: Tensor, out: Tensor | None = None) -> Tensor:
    b, c, f, h, w = pixels.shape
    out = place(out, (b, f, h, w, c), torch.uint8, pixels.device)
    steps, lines, width = list(pixels.stride()), h, w
    packed = steps[1] == 1 and steps[4] == 3
    if steps[3] == w * steps[4]:  # the lines of a frame are one
        lines, width = 1, h * w
    runs = -(-width * (3 if packed else 1) // RUN)
    if out.numel():
        with on_device_of(pixels):
            _kernel[(b * f * lines * runs,)](
                pixels,
                out,
                lines,
                f,
                *steps,
                WIDTH=width,
                BLOCK=RUN,
                PACKED=packed,
                num_warps=WARPS,
            )
    return out


def frames_to_nv12(pixels: Tensor, planar: bool = False, out: Tensor | None = None) -> Tensor:
    b, _, f, h, w = pixels.shape
    out = place(out, (b, f, h // 2 * 3, w), torch.uint8, pixels.device)
    runs, tiles = -(-w // COLUMNS), -(-h // (2 * PAIRS))
    if out.numel():
        with on_device_of(pixels):
            _nv12_kernel[(b * f * runs * tiles,)](
                pixels,
                out,
                f,
                *pixels.stride(),
                HEIGHT=h,
                WIDTH=w,
                PAIRS=PAIRS,
                COLUMNS=COLUMNS,
                PLANAR=planar,
                num_warps=WARPS,
            )
    return out


_STEPS = {f"step_{axis}": "i64" for axis in "bcfhw"}
_PLANES = {name: of for name, of in _STEPS.items() if name != "step_w"}


def _build(kind: str, packed: bool) -> Build:
    # A frame of 480 x 832, as one line. In planes the step from pixel to pixel is 1, which Triton makes a constant.
    return Build(
        op="frames_to_uint8",
        case=f"{kind} {'channels last' if packed else 'planes'}",
        kernel=_kernel,
        signature={
            "pixels": f"*{kind}",
            "out": "*u8",
            **dict.fromkeys(("lines", "frames"), "i32"),
            **(_STEPS if packed else _PLANES),
        },
        constants={**({} if packed else {"step_w": 1}), "WIDTH": 480 * 832, "BLOCK": RUN, "PACKED": packed},
        num_warps=WARPS,
        wide=True,
    )


def _nv12_build(kind: str, planar: bool) -> Build:
    return Build(
        op="frames_to_nv12",
        case=f"{kind} planes{' to planes' if planar else ''}",
        kernel=_nv12_kernel,
        signature={"pixels": f"*{kind}", "out": "*u8", "frames": "i32", **_PLANES},
        constants={"step_w": 1, "HEIGHT": 480, "WIDTH": 832, "PAIRS": PAIRS, "COLUMNS": COLUMNS, "PLANAR": planar},
        num_warps=WARPS,
        wide=True,
    )


BUILDS = [
    *(_build(kind, packed) for kind in ("fp32", "bf16") for packed in (False, True)),
    *(_nv12_build(kind, planar) for kind in ("fp32", "bf16") for planar in (False, True)),
]

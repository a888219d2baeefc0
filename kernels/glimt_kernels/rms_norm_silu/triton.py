"""rms_norm_silu in Triton: rows of channels in registers, read once and written once.

    rows -> sum of squares -> * root / max(norm, eps) * gamma (+ bias) -> y / (1 + exp(-y))

Bytes, X elements: 2 X; gamma and bias come from L2. The floor is the copy rate. An exponential and a reciprocal stand
behind each element, which is more than half of what a GPU can do of them while it copies: channels that do not exist
would cost time. A row is therefore not padded but read in up to five equal pieces (96 = 3 x 32, 160 = 5 x 32). Launch
shape in :func:`launch`; each that is shipped is in :data:`BUILDS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimt_kernels.outputs import place
from glimt_kernels.triton_env import Build, jit, last_together, on_device_of, power_of_2, tl


@jit
def _kernel(
    x,
    gamma,
    bias,
    out,
    rows,
    x_row,
    root,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    PARTS: tl.constexpr,
    BIASED: tl.constexpr,
    SILU: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PIECE)
    inside = (row < rows)[:, None]
    if PIECE * PARTS > WIDTH:
        inside = inside & (column < WIDTH)[None, :]
    at = x + row[:, None] * x_row + column[None, :]
    # One rounding of a row's factor is wrong for the whole row alike, which float32 would show: it takes float64 there.
    WIDE: tl.constexpr = x.dtype.element_ty == tl.float32
    WORKING: tl.constexpr = tl.float64 if WIDE else tl.float32
    pieces = ()
    total = tl.zeros([ROWS], WORKING)
    for part in tl.static_range(PARTS):
        value = tl.load(at + part * PIECE, mask=inside, other=0.0).to(tl.float32)
        pieces = pieces + (value,)  # type: ignore[assignment]  # noqa: RUF005
        total += tl.sum(value.to(WORKING) * value, 1)
    norm = tl.sqrt(total)
    # Not the maximum of both: a NaN must stay one.
    over = tl.sqrt(tl.full([ROWS], WIDTH, WORKING)) if WIDE else root
    factor = (over / tl.where(norm < eps, eps, norm))[:, None]
    to = out + row[:, None] * WIDTH + column[None, :]
    for part in tl.static_range(PARTS):
        channel = part * PIECE + column
        weight = tl.load(gamma + channel, mask=channel < WIDTH, other=0.0).to(WORKING)
        y = (pieces[part] * factor * weight[None, :]).to(tl.float32)
        if BIASED:
            y += tl.load(bias + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)[None, :]
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(to + part * PIECE, y.to(out.dtype.element_ty), mask=inside)


def pieces(width: int) -> tuple[int, int]:
    """(width of a piece, number of pieces) of a row: nothing padded where at most five of at least 16 make it up."""
    piece = width & -width
    return (piece, width // piece) if piece >= 16 and width <= 5 * piece else (power_of_2(width), 1)


def launch(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a row's width: with four warps, eight elements of each piece a thread, of float32 four."""
    piece, parts = pieces(width)
    elements = 512 if dtype == torch.float32 else 1024
    return {"WIDTH": width, "ROWS": max(1, elements // piece), "PIECE": piece, "PARTS": parts}


def rms_norm_silu(
    x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float, out: Tensor | None = None
) -> Tensor:
    width = x.shape[-1]
    out = place(out, x.shape, x.dtype, x.device)
    if out.numel():
        rows = last_together(x.reshape(-1, width))
        constants = launch(width, x.dtype)
        with on_device_of(x):
            _kernel[(-(-rows.shape[0] // constants["ROWS"]),)](
                rows,
                gamma.contiguous(),
                gamma if bias is None else bias.contiguous(),
                out,
                rows.shape[0],
                rows.stride(0),
                width**0.5,
                eps,
                **constants,
                BIASED=bias is not None,
                SILU=silu,
            )
    return out


def _build(width: int, dtype: str = "bf16", *, biased: bool = False, silu: bool = True) -> Build:
    """Gammas in the dtype of x, as a VAE in half precision has them."""
    pointers = dict.fromkeys(("x", "gamma", "bias", "out"), f"*{dtype}")
    constants = launch(width, torch.float32 if dtype == "fp32" else torch.bfloat16)
    words = (dtype, str(width), "bias" if biased else "", "" if silu else "without SiLU")
    return Build(
        op="rms_norm_silu",
        case=" ".join(word for word in words if word),
        kernel=_kernel,
        signature={**pointers, "rows": "i32", "x_row": "i64", "root": "fp32", "eps": "fp32"},
        constants={**constants, "BIASED": biased, "SILU": silu},
        wide=True,
    )


BUILDS = [
    *(_build(width) for width in (96, 192, 384, 160, 256, 512, 1024)),  # Wan 2.1; Wan 2.2
    _build(384, silu=False),  # before the attention of Wan's middle block
    _build(96, biased=True),
    _build(96, "fp32"),
]

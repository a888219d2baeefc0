"""ada_norm and gated_ada_norm in Triton: one program a token, its whole row in registers, read once and written once.

    row -> (+ gate * branch) -> mean -> deviations -> variance -> * (1 + scale) + shift (-> largest -> scale, 8 bits)

Bytes, X = B N D elements: 2 X plain, 4 X gated, half an X less where 8 bits come out of 16; the modulation comes from
L2 when it is per sample. Nothing else moves: the floor is the copy rate. Launch shape in :func:`warps`; each that is
shipped is in :data:`BUILDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.eight_bit.triton import FORMAT_ARCHS, POINTERS, levels, magnitude, scale_of
from glimt_kernels.outputs import each, place
from glimt_kernels.triton_env import ARCHS, VERSION, Build, jit, last_together, on_device_of, power_of_2, steps, tl


@jit
def _kernel(
    x,
    residual,
    gate,
    scale,
    shift,
    out,
    stream,
    row_scales,
    tokens,
    x_sample,
    x_token,
    residual_sample,
    residual_token,
    gate_sample,
    gate_token,
    scale_sample,
    scale_token,
    shift_sample,
    shift_token,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BRANCH: tl.constexpr,
    GATED: tl.constexpr,
    EIGHT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // tokens, row % tokens
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + sample * x_sample + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    if BRANCH:
        if GATED:
            at = gate + sample * gate_sample + token * gate_token + column
            value *= tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at = residual + sample * residual_sample + token * residual_token + column
        value += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        narrow = value.to(stream.dtype.element_ty)
        tl.store(stream + row * WIDTH + column, narrow, mask=inside)
        value = narrow.to(tl.float32)  # what is normalized is the stream as it is stored
    deviation = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
    # The mean of many float32 is rounded; what the deviations sum to corrects it (NUMERICS.md).
    deviation = tl.where(inside, deviation - tl.sum(deviation, 0) / WIDTH, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(deviation * deviation, 0) / WIDTH + eps)
    at = scale + sample * scale_sample + token * scale_token + column
    factor = 1.0 + tl.load(at, mask=inside, other=0.0).to(tl.float32)
    at = shift + sample * shift_sample + token * shift_token + column
    offset = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    normalized = deviation * inverse * factor + offset
    if EIGHT:
        row_scale = scale_of(tl.max(magnitude(normalized), 0), out)
        tl.store(row_scales + row, row_scale)
        tl.store(out + row * WIDTH + column, levels(normalized, 1.0 / row_scale, out), mask=inside)
    else:
        tl.store(out + row * WIDTH + column, normalized.to(out.dtype.element_ty), mask=inside)


def warps(width: int, branch: bool, eight: bool) -> int:
    """Warps of a program: 16 elements a thread, so that a row of 5,120 still fits its registers.

    8 where a stream of 16 bits and a row of 8 are both stored: the compiler would want 8 elements a thread for the one
    and 16 for the other, and turn the row around in shared memory; ptxas then spilled on sm_120. Before 3.7 it gives
    rows of 8 bits without a ragged end 40 registers on sm_100, and spills one: 32 elements a thread there.
    """
    if VERSION < (3, 7) and eight and not branch and width == power_of_2(width):
        return min(16, max(1, width // 1024))
    return min(16, max(1, power_of_2(width) // (256 if branch and eight else 512)))


def _launch(
    x: Tensor,
    residual: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    eight: torch.dtype | None = None,
    given: Sequence[Tensor | None] = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """(normalized, scales of its rows, stream), in those ``given``; what there is none of is another of the three."""
    x, scale, shift = last_together(x), last_together(scale), last_together(shift)
    other = x if residual is None else last_together(residual)
    gates = scale if gate is None else last_together(gate)
    samples, tokens, width = x.shape
    out = place(given[0], x.shape, other.dtype if eight is None else eight, x.device)
    row_scales = out if eight is None else place(given[1], (samples, tokens), torch.float32, x.device)
    stream = out if residual is None else place(given[2], x.shape, other.dtype, x.device)
    if out.numel():
        with on_device_of(x):
            _kernel[(samples * tokens,)](
                x,
                other,
                gates,
                scale,
                shift,
                out,
                stream,
                row_scales,
                tokens,
                *steps(x),
                *steps(other),
                *steps(gates),
                *steps(scale),
                *steps(shift),
                eps,
                WIDTH=width,
                BLOCK=power_of_2(width),
                BRANCH=residual is not None,
                GATED=gate is not None,
                EIGHT=eight is not None,
                num_warps=warps(width, residual is not None, eight is not None),
            )
    return out, row_scales, stream


def ada_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    return _launch(x, None, None, scale, shift, eps, given=(out, None, None))[0]


def gated_ada_norm(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    normalized, stream = each(out, 2)
    return _launch(x, residual, gate, scale, shift, eps, given=(normalized, None, stream))[::2]


def ada_norm_8bit(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    dtype: torch.dtype,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    return _launch(x, None, None, scale, shift, eps, dtype, each(out, 3))[:2]


def gated_ada_norm_8bit(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    dtype: torch.dtype,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch(x, residual, gate, scale, shift, eps, dtype, each(out, 3))


def build(width: int, branch: bool, eight: torch.dtype | None) -> Build:
    out = "*bf16" if eight is None else POINTERS[eight]
    pointers = {**dict.fromkeys(("x", "residual", "stream"), "*bf16"), "out": out}
    modulations = dict.fromkeys(("gate", "scale", "shift", "row_scales"), "*fp32")
    steps = {
        f"{name}_{axis}": "i64" for name in ("x", "residual", "gate", "scale", "shift") for axis in ("sample", "token")
    }
    emits = {None: "", torch.int8: " int8", torch.float8_e4m3fn: " fp8"}[eight]
    return Build(
        op=f"{'gated_' if branch else ''}ada_norm{'' if eight is None else '_8bit'}",
        case=f"bf16 {width}{emits}",
        kernel=_kernel,
        signature={**pointers, **modulations, "tokens": "i32", **steps, "eps": "fp32"},
        constants={
            "WIDTH": width,
            "BLOCK": power_of_2(width),
            "BRANCH": branch,
            "GATED": branch,
            "EIGHT": eight is not None,
        },
        num_warps=warps(width, branch, eight is not None),
        archs=ARCHS if eight is None else FORMAT_ARCHS[eight],
        wide=True,
    )


# Wan 1.3B, LTX 2B and Hunyuan 1.5, Wan 5B, LTX 13B, Wan 14B.
BUILDS = [
    build(width, branch, eight)
    for width in (1536, 2048, 3072, 4096, 5120)
    for branch in (False, True)
    for eight in (None, torch.int8, torch.float8_e4m3fn)
]

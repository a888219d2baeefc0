"""guidance_step in Triton: one program a run of elements; everything is read once, then every combination is written.

The coefficients and the guidance are read from memory by every program (from L2, after the first), so that a captured
graph replays with whatever numbers stand there. All loads come before the first store: an output may be an input.

Bytes, X elements of 32-bit latents: X (4 (1 + history + outputs) + velocities). Latents are small (2 million elements
for Wan at 480p, some 10 to 20 microseconds on a data centre's card), so that what counts is that this is one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.triton_env import Build, jit, on_device_of, tl

# 4 elements a thread: of 8, velocities of 16 bits and latents of 32 would change threads in shared memory.
BLOCK, WARPS = 1024, 8
# Pointers of the kernel: tensors of the past, outputs.
HISTORIES, OUTPUTS = 4, 4


@jit
def _combined(row, x, v, h0, h1, h2, h3, HISTORY: tl.constexpr):
    total = tl.load(row).to(tl.float32) * x + tl.load(row + 1).to(tl.float32) * v
    if HISTORY > 0:
        total += tl.load(row + 2).to(tl.float32) * h0
    if HISTORY > 1:
        total += tl.load(row + 3).to(tl.float32) * h1
    if HISTORY > 2:
        total += tl.load(row + 4).to(tl.float32) * h2
    if HISTORY > 3:
        total += tl.load(row + 5).to(tl.float32) * h3
    return total


@jit
def _kernel(
    latents,
    cond,
    uncond,
    guidance,
    coefficients,
    h0,
    h1,
    h2,
    h3,
    out0,
    out1,
    out2,
    out3,
    size,
    GUIDED: tl.constexpr,
    HISTORY: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(latents + at, mask=inside, other=0.0)
    v = tl.load(cond + at, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        other = tl.load(uncond + at, mask=inside, other=0.0).to(tl.float32)
        v = other + tl.load(guidance).to(tl.float32) * (v - other)
    past0 = tl.load(h0 + at, mask=inside, other=0.0) if HISTORY > 0 else x
    past1 = tl.load(h1 + at, mask=inside, other=0.0) if HISTORY > 1 else x
    past2 = tl.load(h2 + at, mask=inside, other=0.0) if HISTORY > 2 else x
    past3 = tl.load(h3 + at, mask=inside, other=0.0) if HISTORY > 3 else x
    STEP: tl.constexpr = 2 + HISTORY
    row0 = _combined(coefficients, x, v, past0, past1, past2, past3, HISTORY)
    if COUNT > 1:
        row1 = _combined(coefficients + STEP, x, v, past0, past1, past2, past3, HISTORY)
    if COUNT > 2:
        row2 = _combined(coefficients + 2 * STEP, x, v, past0, past1, past2, past3, HISTORY)
    if COUNT > 3:
        row3 = _combined(coefficients + 3 * STEP, x, v, past0, past1, past2, past3, HISTORY)
    tl.store(out0 + at, row0, mask=inside)
    if COUNT > 1:
        tl.store(out1 + at, row1, mask=inside)
    if COUNT > 2:
        tl.store(out2 + at, row2, mask=inside)
    if COUNT > 3:
        tl.store(out3 + at, row3, mask=inside)


def _filled(tensors: Sequence[Tensor], count: int, with_: Tensor) -> list[Tensor]:
    """``count`` tensors, of which the kernel does not look at those beyond ``tensors``."""
    return [*tensors, *[with_] * (count - len(tensors))]


def guidance_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor],
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    x = latents.contiguous()
    count = coefficients.shape[0]
    outputs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(count)] if out is None else [*out]
    guided = uncond is not None and guidance is not None
    size = x.numel()
    if size:
        with on_device_of(x):
            _kernel[(-(-size // BLOCK),)](
                x,
                cond.contiguous(),
                cond if uncond is None else uncond.contiguous(),
                coefficients if guidance is None else guidance,
                coefficients.contiguous(),
                *_filled([past.contiguous() for past in history], HISTORIES, x),
                *_filled(outputs, OUTPUTS, x),
                size,
                GUIDED=guided,
                HISTORY=len(history),
                COUNT=count,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return outputs


def _build(case: str, velocity: str, guided: bool, history: int, count: int, numbers: str = "fp32") -> Build:
    past = [f"h{i}" for i in range(HISTORIES)]
    outputs = [f"out{i}" for i in range(OUTPUTS)]
    return Build(
        op="guidance_step",
        case=f"{velocity} {case}{'' if guided else ' without guidance'}{' fp64 numbers' if numbers == 'fp64' else ''}",
        kernel=_kernel,
        signature={
            **dict.fromkeys(("latents", *past, *outputs), "*fp32"),
            **dict.fromkeys(("cond", "uncond"), f"*{velocity}"),
            **dict.fromkeys(("guidance", "coefficients"), f"*{numbers}"),
            "size": "i64",
        },
        constants={"GUIDED": guided, "HISTORY": history, "COUNT": count, "BLOCK": BLOCK},
        num_warps=WARPS,
        wide=True,
    )


# Euler: next and x0. UniPC of order 2: these and the corrected latents, from the last ones and two estimates. DMD: with
# fresh noise.
BUILDS = [
    _build("euler", "bf16", guided=True, history=0, count=2),
    _build("euler", "bf16", guided=False, history=0, count=2),
    _build("euler", "fp32", guided=True, history=0, count=2),
    _build("unipc", "bf16", guided=True, history=3, count=3),
    _build("unipc", "bf16", guided=False, history=3, count=3),
    _build("unipc", "fp32", guided=True, history=3, count=3),
    _build("unipc", "bf16", guided=True, history=3, count=3, numbers="fp64"),
    _build("dmd", "bf16", guided=False, history=1, count=2),
]

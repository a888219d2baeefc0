"""layer_norm and rms_norm in Triton: one program a row, the row in registers, read once and written once.

    row -> (mean -> deviations ->) mean square -> * weight (+ bias)

Bytes, X elements: 2 X; weight and bias come from L2. The floor is the copy rate. Launch shape in :func:`warps`; each
that is shipped is in :data:`BUILDS`.
"""

from __future__ import annotations

from torch import Tensor

from glimt_kernels.outputs import place
from glimt_kernels.triton_env import Build, jit, last_together, on_device_of, power_of_2, tl


@jit
def _kernel(
    x,
    weight,
    bias,
    out,
    x_row,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        value = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
        # The mean of many float32 is rounded; what the deviations sum to corrects it (NUMERICS.md).
        value = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
    normalized = value * (1.0 / tl.sqrt(tl.sum(value * value, 0) / WIDTH + eps)) * factor
    if CENTERED:
        normalized += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, normalized.to(out.dtype.element_ty), mask=inside)


def warps(width: int) -> int:
    """Warps of a program: 16 elements a thread, so that a row of 5,120 still fits its registers."""
    return min(16, max(1, power_of_2(width) // 512))


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor | None) -> Tensor:
    width = x.shape[-1]
    out = place(out, x.shape, x.dtype, x.device)
    if out.numel():
        rows = last_together(x.reshape(-1, width))
        with on_device_of(x):
            _kernel[(rows.shape[0],)](
                rows,
                weight.contiguous(),
                weight if bias is None else bias.contiguous(),
                out,
                rows.stride(0),
                eps,
                WIDTH=width,
                BLOCK=power_of_2(width),
                CENTERED=bias is not None,
                num_warps=warps(width),
            )
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    return _launch(x, weight, bias, eps, out)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    return _launch(x, weight, None, eps, out)


def build(width: int, centered: bool) -> Build:
    """Weights in float32, as the norms of a half-precision Wan keep them."""
    pointers = {"x": "*bf16", "weight": "*fp32", "bias": "*fp32", "out": "*bf16"}
    return Build(
        op="layer_norm" if centered else "rms_norm",
        case=f"bf16 {width}",
        kernel=_kernel,
        signature={**pointers, "x_row": "i64", "eps": "fp32"},
        constants={"WIDTH": width, "BLOCK": power_of_2(width), "CENTERED": centered},
        num_warps=warps(width),
        wide=True,
    )


BUILDS = [build(width, centered) for width in (1536, 3072, 5120) for centered in (True, False)]  # the Wan family

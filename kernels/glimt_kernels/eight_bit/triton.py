"""The 8-bit formats in Triton: a scale from the largest magnitude, and levels from values."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from glimt_kernels.triton_env import ARCHS, INTERPRETED, jit, tl

# Triton's pointer type of each format, and the chips that have it.
POINTERS: Mapping[torch.dtype, str] = {torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv"}
FORMAT_ARCHS: Mapping[torch.dtype, tuple[int, ...]] = {
    torch.int8: ARCHS,
    torch.float8_e4m3fn: tuple(arch for arch in ARCHS if arch >= 89),
}


if INTERPRETED:

    @jit
    def to_fp8_grid(value):
        """Rounded to what float8_e4m3fn can hold: Triton's interpreter drops the carry when it rounds to 8 bits."""
        bits = value.to(tl.int32, bitcast=True)
        kept = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        small = (value + 24576.0) - 24576.0  # below 2^-6 the steps are 2^-9
        return tl.where(tl.abs(value) < 0.015625, small, kept.to(tl.float32, bitcast=True))

else:

    @jit
    def to_fp8_grid(value):
        """As it is: the conversion instruction rounds to nearest, halves to even."""
        return value


@jit
def magnitude(x):
    """The bits of ``|x|`` as an integer, which order as the values do, infinity above all numbers and NaN above that:
    the largest of them shows a NaN that the largest of floats would pass over."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@jit
def scale_of(largest, out):
    """The scale for values whose largest magnitude is ``largest``, in the format that ``out`` points to."""
    LIMIT: tl.constexpr = 127.0 if out.dtype.element_ty == tl.int8 else 448.0
    return tl.maximum(largest, 0x0D800000).to(tl.float32, bitcast=True) / LIMIT  # these are the bits of 2^-100


@jit
def levels(x, inverse, out):
    """``x * inverse``, to the nearest, in the format that ``out`` points to."""
    value = x * inverse
    if out.dtype.element_ty == tl.int8:
        # 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded, halves to even, and its low byte is the integer.
        level = (value + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        level = to_fp8_grid(value).to(out.dtype.element_ty)
    return level

"""What the 8-bit formats mean, and who has them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# The largest level that is used.
LIMITS: Mapping[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# Groups of smaller values are taken as if they held this: no scale is 0, and none has a reciprocal beyond float32.
SMALLEST = 2.0**-100


def scale_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale of groups whose largest absolute values are ``amax``."""
    return amax.clamp(min=SMALLEST) / LIMITS[dtype]


def levels(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``x / scale`` in ``dtype``; 0 where that is no number and the dtype cannot say so."""
    level = x / scale
    return level.round().nan_to_num(nan=0.0).to(dtype) if dtype == torch.int8 else level.to(dtype)


def check_dtype(op: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless it is one of :data:`LIMITS`."""
    if dtype not in LIMITS:
        known = " or ".join(str(known) for known in LIMITS)
        raise ValueError(f"{op} gives {known}, not {dtype}")


def arch_reasons(arch: int, dtype: torch.dtype) -> list[str]:
    """Why a kernel that emits ``dtype`` cannot be compiled for ``arch`` (0: not known)."""
    if dtype == torch.float8_e4m3fn and 0 < arch < 89:
        return [f"float8_e4m3fn needs sm_89 or newer, the device is sm_{arch}; ask for int8"]
    return []

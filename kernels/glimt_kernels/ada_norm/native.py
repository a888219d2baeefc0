"""ada_norm and gated_ada_norm on the CPU, float32 (cpu.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import lib
from glimt_kernels.outputs import each, place

__all__ = ["ada_norm", "gated_ada_norm", "reasons"]

_NONE = (0, 0, 0)


def _rows(x: Tensor) -> Tensor:
    """``x`` itself if its last axis lies together in memory, else a copy."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _view(x: Tensor) -> tuple[int, int, int]:
    """Address and the steps from sample to sample and from token to token, 0 along an axis that is shared."""
    strides = x.stride()
    return x.data_ptr(), strides[0] if x.shape[0] > 1 else 0, strides[1] if x.shape[1] > 1 else 0


def ada_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    x, scale, shift = _rows(x), _rows(scale), _rows(shift)
    out = place(out, x.shape, x.dtype, x.device)
    lib.ada_norm(
        _view(x),
        _NONE,
        _NONE,
        _view(scale),
        _view(shift),
        out.data_ptr(),
        0,
        tuple(x.shape),
        eps,
        torch.get_num_threads(),
    )
    return out


def gated_ada_norm(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    x, residual, scale, shift = _rows(x), _rows(residual), _rows(scale), _rows(shift)
    gate = _rows(gate) if gate is not None else None
    normalized, stream = (place(one, x.shape, x.dtype, x.device) for one in each(out, 2))
    lib.ada_norm(
        _view(x),
        _view(residual),
        _view(gate) if gate is not None else _NONE,
        _view(scale),
        _view(shift),
        normalized.data_ptr(),
        stream.data_ptr(),
        tuple(x.shape),
        eps,
        torch.get_num_threads(),
    )
    return normalized, stream

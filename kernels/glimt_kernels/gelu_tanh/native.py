"""gelu_tanh on the CPU, float32 (cpu.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import lib

__all__ = ["gelu_tanh", "reasons"]


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    x = x.contiguous()
    bias = bias.contiguous() if bias is not None else None
    out = torch.empty_like(x)
    channels = x.shape[-1]
    lib.gelu_tanh(
        x.data_ptr(),
        bias.data_ptr() if bias is not None else 0,
        out.data_ptr(),
        x.numel() // channels if channels else 0,
        channels,
        torch.get_num_threads(),
    )
    return out

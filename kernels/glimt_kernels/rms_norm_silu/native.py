"""rms_norm_silu on the CPU, float32 (cpu.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import lib
from glimt_kernels.outputs import place

__all__ = ["reasons", "rms_norm_silu"]


def rms_norm_silu(
    x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool, eps: float, out: Tensor | None = None
) -> Tensor:
    x, gamma = x.contiguous(), gamma.contiguous()
    bias = bias.contiguous() if bias is not None else None
    out = place(out, x.shape, x.dtype, x.device)
    channels = gamma.shape[0]
    lib.rms_norm_silu(
        x.data_ptr(),
        gamma.data_ptr(),
        bias.data_ptr() if bias is not None else 0,
        out.data_ptr(),
        x.numel() // channels if channels else 0,
        channels,
        eps,
        silu,
        torch.get_num_threads(),
    )
    return out

"""frames_to_uint8 on the CPU (cpu.h) and on CUDA (frames_to_uint8.cu), from float32."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import cuda_reasons, lib
from glimt_kernels.outputs import place

__all__ = ["cuda_reasons", "frames_to_uint8", "frames_to_uint8_cuda", "reasons"]


def _place(out: Tensor | None, pixels: Tensor) -> Tensor:
    b, c, f, h, w = pixels.shape
    return place(out, (b, f, h, w, c), torch.uint8, pixels.device)


def frames_to_uint8(pixels: Tensor, out: Tensor | None = None) -> Tensor:
    out = _place(out, pixels)
    shape, strides = tuple(pixels.shape), pixels.stride()
    lib.frames_to_uint8(pixels.data_ptr(), shape, strides, out.data_ptr(), torch.get_num_threads())
    return out


def frames_to_uint8_cuda(pixels: Tensor, out: Tensor | None = None) -> Tensor:
    with torch.cuda.device(pixels.device):
        out = _place(out, pixels)
        lib.frames_to_uint8_cuda(pixels, out, torch.cuda.current_stream().cuda_stream)
    return out

"""frames_to_uint8 on the CPU (cpu.h) and on CUDA (frames_to_uint8.cu), from float32."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.native import cpu_float32_reasons as reasons
from glimt_kernels.native import cuda_reasons, lib

__all__ = ["cuda_reasons", "frames_to_uint8", "frames_to_uint8_cuda", "reasons"]


def _out(pixels: Tensor) -> Tensor:
    b, c, f, h, w = pixels.shape
    return torch.empty((b, f, h, w, c), dtype=torch.uint8, device=pixels.device)


def frames_to_uint8(pixels: Tensor) -> Tensor:
    out = _out(pixels)
    shape, strides = tuple(pixels.shape), pixels.stride()
    lib.frames_to_uint8(pixels.data_ptr(), shape, strides, out.data_ptr(), torch.get_num_threads())
    return out


def frames_to_uint8_cuda(pixels: Tensor) -> Tensor:
    with torch.cuda.device(pixels.device):
        out = _out(pixels)
        lib.frames_to_uint8_cuda(pixels, out, torch.cuda.current_stream().cuda_stream)
    return out

"""Workloads: ``ops/<op>.py`` holds the function ``workload(name, shape, dtype, device) -> Workload``.

A name with a slash is another function of the same file: ``attention/cross`` is ``cross`` in ``attention.py``. Where a
model calls an op in more ways than one, ``of(name, args) -> Workload`` takes the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

OPS = (
    "ada_norm",
    "ada_norm_8bit/int8",
    "ada_norm_8bit/fp8",
    "gated_ada_norm",
    "gated_ada_norm_8bit/int8",
    "gated_ada_norm_8bit/fp8",
    "layer_norm",
    "rms_norm",
    "linear",
    "qk_norm_rope",
    "qk_norm_rope_8bit/int8",
    "qk_norm_rope_8bit/fp8",
    "attention",
    "attention/cross",
    "attention_lse",
    "attention_8bit",
    "sparse_attention",
    "sparse_attention/lse",
    "chunk_attention",
    "quantize_blocks/int8",
    "quantize_blocks/fp8",
    "quantize_channels",
    "quantize_rows/int8",
    "quantize_rows/fp8",
    "linear_w8a8/int8",
    "linear_w8a8/fp8",
    "linear_w8a8/fp8_blocks",
    "linear_w8/int8",
    "linear_w8/fp8",
    "linear_quant/int8",
    "linear_quant/fp8",
    "guidance_step",
    "rms_norm_silu",
    "causal_conv3d",
    "causal_conv3d/half",
    "causal_conv3d/quarter",
    "causal_conv3d_norm",
    "upsample_conv",
    "frames_to_uint8",
    "frames_to_nv12",
    "frames_to_nv12/planar",
)


def build(op: str, name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """The workload called ``op`` on ``shape``, called ``name``."""
    file, _, variant = op.partition("/")
    module = import_module(f"glimt_kernels.bench.ops.{file}")
    made: Workload = getattr(module, variant or "workload")(name, shape, dtype, device)
    return made


def build_call(op: str, name: str, args: Sequence[Any], device: torch.device) -> Workload:
    """The workload of a call of ``op``, with tensors like those of ``args`` (which may be on the meta device)."""
    module = import_module(f"glimt_kernels.bench.ops.{op}")
    made: Workload = module.of(name, tuple(_like(arg, device) for arg in args))
    return made


def _like(arg: Any, device: torch.device) -> Any:
    """Random and contiguous, where it is a tensor."""
    return torch.randn(arg.shape, device=device).to(arg.dtype) if isinstance(arg, Tensor) else arg

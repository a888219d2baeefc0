"""Kernels of glimt, usable and measurable without the engine.

Every op is a plain function over torch tensors with one contract, a reference that defines it, and faster
implementations that :mod:`glimt_kernels.dispatch` chooses among. ``inventory()`` lists them all.
"""

from glimt_kernels.ada_norm.api import ada_norm, ada_norm_8bit, gated_ada_norm, gated_ada_norm_8bit
from glimt_kernels.attention.api import attention
from glimt_kernels.attention_8bit.api import attention_8bit, attention_8bit_levels, preferred_formats
from glimt_kernels.causal_conv3d.api import causal_conv3d, causal_conv3d_norm
from glimt_kernels.chunk_attention.api import chunk_attention
from glimt_kernels.chunk_attention.ring import KvRing
from glimt_kernels.dispatch import (
    Case,
    UnsupportedError,
    references_only,
    select,
    unsupported_reasons,
    wants_references,
)
from glimt_kernels.frames_to_uint8.api import frames_to_nv12, frames_to_uint8, frames_to_yuv420
from glimt_kernels.guidance_step.api import guidance_step
from glimt_kernels.linear.api import linear
from glimt_kernels.linear_quant.api import linear_quant, linear_w8, linear_w8a8, quantize_rows
from glimt_kernels.linear_quant.quantize import QuantizedWeight, quantize_weight
from glimt_kernels.listing import inventory
from glimt_kernels.native import instruction_set
from glimt_kernels.norm.api import layer_norm, rms_norm
from glimt_kernels.qk_norm_rope.api import qk_norm_rope
from glimt_kernels.qk_norm_rope_8bit.api import estimate_k_mean, qk_norm_rope_8bit
from glimt_kernels.quantize_qkv.api import quantize_blocks, quantize_channels
from glimt_kernels.rms_norm_silu.api import rms_norm_silu
from glimt_kernels.sparse_attention.api import sparse_attention
from glimt_kernels.sparse_attention.builders import block_means, radial, sliding_tile, top_k
from glimt_kernels.sparse_attention.mask import BlockMask
from glimt_kernels.sparse_attention.tiles import Tiling, tile_order
from glimt_kernels.upsample_conv.api import upsample_conv
from glimt_kernels.upsample_conv.fold import fold_upsample

__all__ = [
    "BlockMask",
    "Case",
    "KvRing",
    "QuantizedWeight",
    "Tiling",
    "UnsupportedError",
    "ada_norm",
    "ada_norm_8bit",
    "attention",
    "attention_8bit",
    "attention_8bit_levels",
    "block_means",
    "causal_conv3d",
    "causal_conv3d_norm",
    "chunk_attention",
    "estimate_k_mean",
    "fold_upsample",
    "frames_to_nv12",
    "frames_to_uint8",
    "frames_to_yuv420",
    "gated_ada_norm",
    "gated_ada_norm_8bit",
    "guidance_step",
    "instruction_set",
    "inventory",
    "layer_norm",
    "linear",
    "linear_quant",
    "linear_w8",
    "linear_w8a8",
    "preferred_formats",
    "qk_norm_rope",
    "qk_norm_rope_8bit",
    "quantize_blocks",
    "quantize_channels",
    "quantize_rows",
    "quantize_weight",
    "radial",
    "references_only",
    "rms_norm",
    "rms_norm_silu",
    "select",
    "sliding_tile",
    "sparse_attention",
    "tile_order",
    "top_k",
    "unsupported_reasons",
    "upsample_conv",
    "wants_references",
]

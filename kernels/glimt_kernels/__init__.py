"""Kernels of glimt, usable and measurable without the engine.

Every op is a plain function over torch tensors with one contract, a reference that defines it, and faster
implementations that :mod:`glimt_kernels.dispatch` chooses among. ``dispatch.inventory()`` lists them all.
"""

from glimt_kernels.ada_norm.api import ada_norm, gated_ada_norm
from glimt_kernels.dispatch import (
    Case,
    UnsupportedError,
    inventory,
    references_only,
    select,
    unsupported_reasons,
    wants_references,
)
from glimt_kernels.frames_to_uint8.api import frames_to_uint8
from glimt_kernels.native import instruction_set
from glimt_kernels.qk_norm_rope.api import qk_norm_rope
from glimt_kernels.rms_norm_silu.api import rms_norm_silu

__all__ = [
    "Case",
    "UnsupportedError",
    "ada_norm",
    "frames_to_uint8",
    "gated_ada_norm",
    "instruction_set",
    "inventory",
    "qk_norm_rope",
    "references_only",
    "rms_norm_silu",
    "select",
    "unsupported_reasons",
    "wants_references",
]

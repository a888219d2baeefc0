"""How attention's kernels are launched: tiles on each chip, and what TMA can describe. Shared with chunk_attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt_kernels.attention.call import chip
from glimt_kernels.triton_env import power_of_2


class Tiles(NamedTuple):
    """Launch shape: queries of a program, keys of a block, and the way through the keys."""

    queries: int
    keys: int
    warps: int
    stages: int
    way: str = "plain"

    @property
    def tma(self) -> bool:
        """Whether keys and values come by TMA."""
        return self.way in ("values behind", "logits ahead")


def tiles(arch: int, dtype: torch.dtype, head_dim: int, describable: bool = True) -> Tiles:
    """The launch shape on a chip.

    Args:
        arch: as in ``Case``; 0 (interpreted) is as sm_80.
        describable: whether TMA can read the keys and values.
    """
    known = chip(arch)
    width = max(32, power_of_2(head_dim))
    if dtype == torch.float32:  # no matrix units: registers are the limit
        return {32: Tiles(32, 32, 4, 2), 64: Tiles(32, 32, 4, 2), 128: Tiles(32, 32, 8, 2)}.get(
            width, Tiles(16, 16, 16, 2)
        )
    if known in (90, 100) and describable and head_dim in (64, 128):
        if known == 100:
            return Tiles(128, 128, 8, 2, "logits ahead")
        return Tiles(128, 128 if head_dim == 64 else 64, 8, 3 if head_dim == 64 else 2, "values behind")
    if head_dim % 16:  # rows lie on no 16 bytes and come number by number, which takes registers
        return Tiles(32, 16, 8, 2) if width == 256 else Tiles(128, 32, 8, 3)
    if width == 256:
        return Tiles(64 if known in (90, 100) else 32, 32, 8, 2)  # 64 elsewhere spill in Triton 3.6
    if width == 128:
        return Tiles(128, 64, 8, 3)
    return Tiles(128, 64, 4, 2 if known == 120 else 3)  # on sm_120 a third stage spills


def rows(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def steps(x: Tensor) -> list[int]:
    """Strides of the axes but the last; of an axis of length 1, what they would be in a contiguous tensor."""
    heads, width = x.shape[2:]
    dense = (x.shape[1] * heads * width, heads * width, width)
    return [d if n == 1 else s for n, s, d in zip(x.shape[:3], x.stride()[:3], dense, strict=True)]


def describable(x: Tensor) -> bool:
    """Whether a TMA descriptor can hold ``x``: everything on multiples of 16 bytes, no axis shared."""
    size = x.element_size()
    return x.data_ptr() % 16 == 0 and all(0 < s * size < 1 << 40 and s * size % 16 == 0 for s in steps(x))


def described(x: Tensor, block: int) -> Any:
    """The TMA descriptor of ``x`` [B, L, heads, head_dim] that loads ``block`` tokens of one head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), [*steps(x), 1], [1, block, 1, x.shape[3]])

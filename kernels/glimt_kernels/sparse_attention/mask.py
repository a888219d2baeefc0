"""BlockMask: which blocks of keys each block of queries sees, as lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glimt_kernels.sparse_attention.tiles import BLOCKS, Tiling


@dataclass(frozen=True)
class BlockMask:
    """A list of blocks of keys for each sample, head and block of queries.

    Row r of sample b and head h sees the blocks ``indices[indptr[b, h, r] : indptr[b, h, r + 1]]``, ascending, none
    twice. Lists follow each other in the order of samples, heads and rows.

    Attributes:
        indptr: [1 or B, 1 or heads, rows + 1] int32; a 1 stands for all.
        indices: [entries] int32.
        block: tokens of a block, 64 or 128.
        cols: number of blocks of keys.
        lengths: [cols] int32, tokens of each block of keys, at least one; the places behind them are empty and hold
            numbers (zeros, say) that nobody sees. None: all blocks are whole but the last, which has what is left.
        tiling: how places follow from the token grid, if they do.
    """

    indptr: Tensor
    indices: Tensor
    block: int
    cols: int
    lengths: Tensor | None = None
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        tensors = [x for x in (self.indptr, self.indices, self.lengths) if x is not None]
        dims = self.indptr.dim() == 3 and self.indptr.shape[2] > 0 and self.indices.dim() == 1
        dims = dims and (self.lengths is None or self.lengths.shape == (self.cols,))
        if not dims or self.block not in BLOCKS or any(x.dtype != torch.int32 for x in tensors):
            found = [f"{list(x.shape)} {x.dtype}" for x in tensors]
            raise ValueError(
                "BlockMask takes int32 indptr [1 or B, 1 or heads, rows + 1], indices [entries] and lengths [cols], "
                f"and block 64 or 128; found {', '.join(found)}, cols {self.cols}, block {self.block}"
            )

    @property
    def rows(self) -> int:
        """Number of blocks of queries."""
        return self.indptr.shape[2] - 1

    @property
    def density(self) -> float:
        """Listed blocks among all: what the attention costs, the dense one being 1."""
        return self.indices.shape[0] / max(self.indptr.shape[0] * self.indptr.shape[1] * self.rows * self.cols, 1)

    def to(self, device: torch.device | str) -> BlockMask:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(self, indptr=self.indptr.to(device), indices=self.indices.to(device), lengths=lengths)

    def check(self) -> BlockMask:
        """Itself; ValueError with everything that is wrong with the numbers in it. Waits for the device."""
        check_lists(self.indptr, self.indices, self.lengths, self.block, self.cols)
        return self

    def dense(self) -> Tensor:
        """[1 or B, 1 or heads, rows, cols] bool."""
        return dense_mask(self.indptr, self.indices, self.cols)

    @classmethod
    def from_dense(
        cls, mask: Tensor, block: int, *, lengths: Tensor | None = None, tiling: Tiling | None = None
    ) -> BlockMask:
        """From [1 or B, 1 or heads, rows, cols] bool. Waits for the device."""
        counts = mask.sum(3).flatten()
        ends = torch.cumsum(counts, 0, dtype=torch.int32).view(mask.shape[:3])
        starts = (ends.flatten() - counts.int()).view_as(ends)[..., :1]
        indices = mask.flatten(0, 2).nonzero()[:, 1].int()
        return cls(torch.cat([starts, ends], 2), indices, block, mask.shape[3], lengths, tiling)


def dense_mask(indptr: Tensor, indices: Tensor, cols: int) -> Tensor:
    """The boolean mask of the lists: [1 or B, 1 or heads, rows, cols]."""
    ends = indptr[..., 1:].flatten().contiguous()
    entry = torch.arange(indices.shape[0], dtype=indptr.dtype, device=indptr.device)
    row = torch.searchsorted(ends, entry, right=True)
    mask = torch.zeros((ends.shape[0], cols), dtype=torch.bool, device=indptr.device)
    mask = mask.index_put((row, indices.long()), torch.ones((), dtype=torch.bool, device=indptr.device))
    return mask.view(*indptr.shape[:2], indptr.shape[2] - 1, cols)


def check_lists(indptr: Tensor, indices: Tensor, lengths: Tensor | None, block: int, cols: int) -> None:
    """Raise ValueError with everything that is wrong. Waits for the device."""
    entries, wrong = indices.shape[0], []
    starts, ends = indptr[..., :-1].flatten(), indptr[..., 1:].flatten()
    follows = torch.cat([starts.new_zeros(1), ends]) == torch.cat([starts, starts.new_full((1,), entries)])
    if not follows.all() or (ends < starts).any():
        wrong.append(f"indptr must rise from 0 to the {entries} entries, each list beginning where the one before ends")
    if entries and not (indices.min() >= 0 and indices.max() < cols):
        wrong.append(f"indices must name blocks 0 to {cols - 1}; found {int(indices.min())} to {int(indices.max())}")
    falls = torch.zeros(entries, dtype=torch.bool, device=indices.device)
    falls[1:] = indices[1:] <= indices[:-1]
    falls[starts[(starts >= 0) & (starts < entries)].long()] = False
    if falls.any():
        wrong.append(f"each list must ascend; the one with entry {int(falls.nonzero()[0])} does not")
    if lengths is not None and not ((lengths >= 1) & (lengths <= block)).all():
        wrong.append(f"lengths must be 1 to {block}; found {int(lengths.min())} to {int(lengths.max())}")
    if wrong:
        raise ValueError("a mask for sparse_attention is not right: " + "; ".join(wrong))

"""Masks: sliding windows of tiles, radial attention, and the blocks with the highest scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glimt_kernels.sparse_attention.mask import BlockMask
from glimt_kernels.sparse_attention.tiles import Extent, Tiling


def _of(tiling: Tiling, mask: Tensor, device: torch.device | str) -> BlockMask:
    lengths = tiling.lengths() if tiling.ragged else None
    return BlockMask.from_dense(mask[None, None], tiling.block, lengths=lengths, tiling=tiling).to(device)


def sliding_tile(tiling: Tiling, window: Extent, device: torch.device | str = "cpu") -> BlockMask:
    """Each tile sees the window of ``window`` (t, y, x) tiles around it; at the grid's edge the window is moved inside.

    So every row has the same number of blocks. A window of the whole grid is dense attention. Along an axis where the
    window is even, it reaches one tile further back than ahead. Built once, on the CPU.

    Raises:
        ValueError: a window without a tile.

    Source: arXiv:2502.04507.
    """
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"sliding_tile takes a window (t, y, x) of at least one tile; found {window}")
    axes = []
    for count, size in zip(tiling.tiles, window, strict=True):
        tile = torch.arange(count)
        begin = (tile - size // 2).clamp(0, max(count - size, 0))[:, None]
        axes.append((tile >= begin) & (tile < begin + size))
    t, y, x = axes
    mask = t[:, None, None, :, None, None] & y[None, :, None, None, :, None] & x[None, None, :, None, None, :]
    return _of(tiling, mask.reshape(tiling.blocks, tiling.blocks), device)


def radial(tiling: Tiling, *, width: float = 1.0, sink: bool = True, device: torch.device | str = "cpu") -> BlockMask:
    """What a tile sees of another time halves whenever the distance in time doubles.

    With d the frames between the nearest frames of two tiles, r = floor(log2(max(d, 1))), s the tiles of one time and
    i, j the places of the two among them in the order y, x: seen where ``|i - j| + 1 <= width * s / 2^r``; once that is
    less than one tile, i = j alone and only at every ceil(2^r / (width * s))th time. ``sink`` has all tiles see the
    first time. Built once, on the CPU.

    Raises:
        ValueError: width is not positive.

    Source: arXiv:2506.19852, with tiles in the place of tokens.
    """
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"radial takes a positive width; found {width}")
    times, plane = tiling.tiles[0], tiling.tiles[1] * tiling.tiles[2]
    time, place = torch.arange(times), torch.arange(plane)
    apart = (time[:, None] - time).abs()
    frames = (apart - 1) * tiling.tile[0] + 1
    halvings = torch.floor(torch.log2(frames.clamp_min(1).double()))
    band = width * plane / 2**halvings
    near = (place[:, None] - place).abs() + 1
    seen = near[None, :, None, :] <= band[:, None, :, None]
    thin = (band < 1) & (apart % torch.ceil(1 / band).long() == 0)
    seen |= thin[:, None, :, None] & (near == 1)[None, :, None, :]
    if sink:
        seen[:, :, 0] = True
    return _of(tiling, seen.reshape(tiling.blocks, tiling.blocks), device)


def block_means(x: Tensor, block: int, lengths: Tensor | None = None, *, every: int = 1) -> Tensor:
    """Mean of each block of tokens: x [B, N, heads, head_dim] -> [B, heads, blocks, head_dim] float32.

    Args:
        lengths: [blocks] int32, tokens of each block; empty places must be zeros. Without it all blocks are whole but
            the last.
        every: take each block's tokens 0, every, 2 every... only: that much less is read. A number that has no
            divisor in common with the tile's x and y goes through the tile diagonally rather than down a column.

    Raises:
        ValueError: every is less than 1.
    """
    if every < 1:
        raise ValueError(f"block_means takes every >= 1; found {every}")
    whole = x.shape[1] // block * block
    blocks = x[:, :whole].reshape(x.shape[0], whole // block, block, *x.shape[2:])[:, :, ::every]
    if lengths is not None:
        means = blocks.sum(2, dtype=torch.float32) / ((lengths + (every - 1)) // every)[:, None, None]
    else:
        means = blocks.mean(2, dtype=torch.float32)
        if whole < x.shape[1]:
            means = torch.cat([means, x[:, whole::every].mean(1, keepdim=True, dtype=torch.float32)], 1)
    return means.transpose(1, 2)


def top_k(
    q_means: Tensor,
    k_means: Tensor,
    keep: int,
    block: int,
    *,
    lengths: Tensor | None = None,
    tiling: Tiling | None = None,
) -> BlockMask:
    """Each block of queries sees the ``keep`` blocks of keys whose mean has the highest product with its own mean.

    The same number in every row, so that the shape of the mask is known beforehand: nothing waits for the device, and a
    CUDA graph may hold it.

    Args:
        q_means, k_means: [B, heads, blocks, head_dim], as :func:`block_means` gives them.
        keep: blocks of each row, at most all.
        lengths, tiling: for the mask.

    Raises:
        ValueError: shapes do not fit, or keep is not between 1 and the number of blocks.

    Source: arXiv:2505.13389, arXiv:2509.24006.
    """
    fits = q_means.dim() == 4 and k_means.shape == (*q_means.shape[:2], *k_means.shape[2:])
    fits = fits and k_means.shape[3] == q_means.shape[3]
    if not fits or not 1 <= keep <= k_means.shape[2]:
        raise ValueError(
            "top_k takes q_means and k_means [B, heads, blocks, head_dim] and keep between 1 and the blocks of keys; "
            f"found {list(q_means.shape)}, {list(k_means.shape)}, keep {keep}"
        )
    samples, heads, rows, _ = q_means.shape
    scores = q_means @ k_means.mT
    indices = scores.topk(keep, sorted=False).indices.int().sort().values.flatten()
    row = torch.arange(samples * heads, dtype=torch.int32, device=scores.device).view(samples, heads, 1) * rows
    indptr = (row + torch.arange(rows + 1, dtype=torch.int32, device=scores.device)) * keep
    return BlockMask(indptr, indices, block, k_means.shape[2], lengths, tiling)

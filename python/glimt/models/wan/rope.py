"""Three-axis rotary position embedding of the Wan family.

For a token at grid position ``(t, y, x)`` the ``head_dim / 2`` channel pairs are split over the axes, pair ``j`` of an
axis with ``dim`` channels being turned by the angle ``p * theta ** (-2 j / dim)`` where ``p`` is the position on it:

    (a, b) -> (a cos - b sin, a sin + b cos),      pairs are neighbours: channels 2j and 2j + 1.

Height and width get ``2 * (head_dim // 6)`` channels each, time the rest. Angles are taken in float64 and the tables
stored in float32. Source: RoFormer (arXiv:2104.09864); the split is Wan 2.1's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTables:
    """Cosines and sines ``[N, head_dim / 2]`` float32 for one token grid, tokens in order t, y, x."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> RopeTables:
        return RopeTables(self.cos.to(device), self.sin.to(device))


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@lru_cache(maxsize=32)
def rope_tables(head_dim: int, grid: tuple[int, int, int], theta: float = 10000.0) -> RopeTables:
    """Tables for a token grid ``(t, y, x)``, on the CPU; cached, since they depend on shapes alone."""
    with torch.inference_mode(False):  # the cache outlives the caller, who may train
        return _tables(head_dim, grid, theta)


def _tables(head_dim: int, grid: tuple[int, int, int], theta: float) -> RopeTables:
    angles = [_axis_angles(dim, n, theta) for dim, n in zip(axis_dims(head_dim), grid, strict=True)]
    t, y, x = grid
    full = torch.cat(
        [
            angles[0].view(t, 1, 1, -1).expand(t, y, x, -1),
            angles[1].view(1, y, 1, -1).expand(t, y, x, -1),
            angles[2].view(1, 1, x, -1).expand(t, y, x, -1),
        ],
        dim=-1,
    ).reshape(t * y * x, head_dim // 2)
    return RopeTables(full.cos().float(), full.sin().float())


def _axis_angles(dim: int, positions: int, theta: float) -> Tensor:
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)


def rotate(x: Tensor, tables: RopeTables) -> Tensor:
    """Turn ``x [B, N, heads, head_dim]``; computed in float32, returned in the dtype of ``x``. Differentiable."""
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = tables.cos[:, None, :], tables.sin[:, None, :]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)

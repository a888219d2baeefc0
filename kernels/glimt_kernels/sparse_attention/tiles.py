"""Tiling: how the tokens of a (t, y, x) grid lie in blocks, so that a block is a small box of the video."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = (64, 128)
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Tiling:
    """One tile a block. Tiles go through the grid in the order t, y, x, and so do the tokens inside of a tile.

    A tile of fewer tokens than a block (at an edge that tiles do not divide, or everywhere) fills the block from the
    front; what is left are *empty places*.

    Attributes:
        grid: tokens (t, y, x). tile: extent of a tile, of at most ``block`` tokens. block: 64 or 128.
    """

    grid: Extent
    tile: Extent
    block: int

    def __post_init__(self) -> None:
        fits = len(self.grid) == len(self.tile) == 3 and min(*self.grid, *self.tile) > 0
        if not fits or self.block not in BLOCKS or math.prod(self.tile) > self.block:
            raise ValueError(
                "Tiling takes a grid and a tile (t, y, x), the tile of at most block tokens, and block 64 or 128; "
                f"found grid {self.grid}, tile {self.tile}, block {self.block}"
            )

    @property
    def tiles(self) -> Extent:
        """Tiles along each axis."""
        t, y, x = (-(-n // extent) for n, extent in zip(self.grid, self.tile, strict=True))
        return t, y, x

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def blocks(self) -> int:
        return math.prod(self.tiles)

    @property
    def places(self) -> int:
        """Tokens and empty places: the length of a sequence in tile order."""
        return self.blocks * self.block

    @property
    def ragged(self) -> bool:
        """Whether there are empty places."""
        return self.places != self.tokens

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        """[places] int32: the token at each place, -1 at empty ones; the ``order`` of ``qk_norm_rope``."""
        token = torch.arange(self.tokens, dtype=torch.int32, device=device).view(self.grid)
        missing = [n * extent - size for n, extent, size in zip(self.tiles, self.tile, self.grid, strict=True)]
        whole = torch.nn.functional.pad(token, (0, missing[2], 0, missing[1], 0, missing[0]), value=-1)
        split = [size for pair in zip(self.tiles, self.tile, strict=True) for size in pair]
        rows = whole.view(split).permute(0, 2, 4, 1, 3, 5).reshape(self.blocks, -1)
        front = torch.sort((rows < 0).to(torch.uint8), dim=1, stable=True).indices
        filled = rows.gather(1, front)
        return torch.nn.functional.pad(filled, (0, self.block - rows.shape[1]), value=-1).flatten()

    def place_of_tokens(self, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] int64: the place of each token; the inverse of :meth:`order`."""
        order = self.order(device).long()
        places = torch.empty(self.tokens + 1, dtype=torch.int64, device=device)
        places[order] = torch.arange(self.places, device=device)  # -1 is the last, which nobody reads
        return places[:-1]

    def lengths(self, device: torch.device | str = "cpu") -> Tensor:
        """[blocks] int32: tokens of each block."""
        return (self.order(device).view(-1, self.block) >= 0).sum(1, dtype=torch.int32)

    def to_tiles(self, x: Tensor) -> Tensor:
        """x [B, tokens, ...] in tile order, [B, places, ...]; zeros at empty places."""
        order = self.order(x.device).long()
        moved = x.index_select(1, order.clamp_min(0))
        if not self.ragged:
            return moved
        return moved.masked_fill((order < 0).view(1, -1, *[1] * (x.dim() - 2)), 0)

    def from_tiles(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_tiles`."""
        return x.index_select(1, self.place_of_tokens(x.device))


def tile_order(grid: Extent, tile: Extent, block: int | None = None) -> tuple[Tensor, Tensor]:
    """(token at each place, place of each token): ``y = x[:, order]`` and ``x = y[:, places]``, see :class:`Tiling`.

    ``block`` is the smallest that holds a tile if None.
    """
    fitting = [size for size in BLOCKS if size >= math.prod(tile)]
    tiling = Tiling(grid, tile, block or min(fitting, default=BLOCKS[-1]))
    return tiling.order(), tiling.place_of_tokens()

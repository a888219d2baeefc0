"""Parts of a picture that are decoded one after the other, each with what is around it that its pixels depend on.

Attention mixes the whole of a frame, so what comes before it runs on whole frames, at the resolution of the latents,
which costs little. Everything after it looks ``k`` pixels around for ``k`` convolutions: a tile enters each level with
that much around it and loses it on the way out, so that tiled pixels are those of the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from glimt.models.wan.config import WanVaeConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a picture, the ends not among them."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def area(self) -> int:
        return self.height * self.width

    def scaled(self, factor: int) -> Box:
        return Box(self.top * factor, self.bottom * factor, self.left * factor, self.right * factor)

    def grown(self, by: int, within: Box) -> Box:
        """With ``by`` more on each side, as far as ``within`` reaches."""
        return Box(
            max(self.top - by, within.top),
            min(self.bottom + by, within.bottom),
            max(self.left - by, within.left),
            min(self.right + by, within.right),
        )

    def cut(self, x: Tensor, of: Box) -> Tensor:
        """This box of ``x [..., H, W]``, which shows ``of``."""
        if self == of:
            return x
        return x[..., self.top - of.top : self.bottom - of.top, self.left - of.left : self.right - of.left]


@dataclass(frozen=True)
class Tile:
    """One part of a picture on its way up.

    Attributes:
        core: what it is for, in latents.
        boxes: what enters each level of the decoder after attention, in that level's pixels; last, what leaves it.
    """

    core: Box
    whole: Box
    boxes: tuple[Box, ...]

    def cut(self, x: Tensor, level: int) -> Tensor:
        """``x [B, C, F, H, W]``, which comes from the level before, as it enters ``level``."""
        return self.boxes[level].cut(x, self.came(level))

    def came(self, level: int) -> Box:
        """What comes from the level before: twice the size, but from attention and from the last level."""
        if level == 0:
            return self.whole
        return self.boxes[level - 1].scaled(2 if level < len(self.boxes) - 1 else 1)


def halos(config: WanVaeConfig) -> tuple[int, ...]:
    """Pixels around a tile that its pixels depend on, at the entry of each level, in that level's pixels."""
    convolutions = 2 * (config.num_res_blocks + 1)
    found = [convolutions + 1]  # and the last one, to pixels
    for _ in config.dim_mult[1:]:
        found.insert(0, convolutions + (found[0] + 1 + 1) // 2)  # one of the doubled picture, halved, rounded up
    return tuple(found)


def tile(config: WanVaeConfig, core: Box, whole: Box) -> Tile:
    """The tile of ``core`` out of ``whole``, both in latents."""
    last = len(config.dim_mult) - 1
    levels = [core.scaled(2**i).grown(halo, whole.scaled(2**i)) for i, halo in enumerate(halos(config))]
    return Tile(core, whole, (*levels, core.scaled(2**last)))


def tiles(config: WanVaeConfig, height: int, width: int, rows: int, columns: int) -> tuple[Tile, ...]:
    """``rows`` x ``columns`` tiles, as equal as can be, of a picture of ``height`` x ``width`` latents."""
    ys = [height * i // rows for i in range(rows + 1)]
    xs = [width * i // columns for i in range(columns + 1)]
    whole = Box(0, height, 0, width)
    cores = [Box(top, bottom, left, right) for top, bottom in pairwise(ys) for left, right in pairwise(xs)]
    return tuple(tile(config, core, whole) for core in cores)

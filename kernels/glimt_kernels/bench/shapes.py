"""The shapes that video models really run: one row a model and clip size. Tokens are those of the grid after patching.

Sources: the models' published configurations; clip sizes are the ones that their makers recommend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Shape:
    """A transformer at work on one clip.

    Attributes:
        grid: token grid (t, y, x).
        heads, head_dim: of self-attention; their product is the width.
        ffn_dim: inner width of the MLP.
        text: text tokens as the pipeline pads them.
        layers: how often a forward does each of this.
        clip: (frames, height, width) in pixels.
    """

    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    ffn_dim: int
    text: int
    layers: int
    clip: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        t, y, x = self.grid
        return t * y * x

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "tiny": Shape((3, 5, 7), 2, 64, 320, 29, 1, (9, 80, 112)),  # for trying the tool out
        "wan-1.3b-480p": Shape((21, 30, 52), 12, 128, 8960, 512, 30, (81, 480, 832)),
        "wan-14b-480p": Shape((21, 30, 52), 40, 128, 13824, 512, 40, (81, 480, 832)),
        "wan-14b-720p": Shape((21, 45, 80), 40, 128, 13824, 512, 40, (81, 720, 1280)),
        "wan-5b-720p": Shape((31, 22, 40), 24, 128, 14336, 512, 30, (121, 704, 1280)),
        "ltx-2b": Shape((16, 16, 24), 32, 64, 8192, 128, 28, (121, 512, 768)),
        "ltx-2-video": Shape((16, 22, 40), 32, 128, 16384, 1024, 48, (121, 704, 1280)),
        "hunyuan-720p": Shape((33, 45, 80), 24, 128, 12288, 256, 60, (129, 720, 1280)),
        "hunyuan-1.5-480p": Shape((31, 30, 53), 16, 128, 8192, 1000, 54, (121, 480, 848)),
        "cogvideox-5b": Shape((13, 30, 45), 48, 64, 12288, 226, 42, (49, 480, 720)),
    }
)

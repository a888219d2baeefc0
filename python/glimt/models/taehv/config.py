"""What a tiny autoencoder of the TAEHV form is made of, read from the shapes of its tensors. Standard library only.

The published files are two lists of layers, numbered in the order in which they run; activations have no tensors and
leave gaps in the numbers:

    decoder  0 clamp  1 conv  2 relu  [blocks, double H and W, grow, conv] per level  relu  conv
    encoder  0 conv   1 relu          [pool, conv of stride 2, blocks] per level      conv

A block is told by its ``conv.0``, growing or pooling in time by its one ``conv.weight``. Doubling H and W leaves no
trace; every level does, in all published files (Wan 2.1 and 2.2, HunyuanVideo 1 and 1.5, CogVideoX, LTX-2).
Source: https://github.com/madebyollin/taehv
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from glimt.errors import CheckpointError

Shape = tuple[int, ...]
_NUMBERED = re.compile(r"(decoder|encoder)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TinyLevel:
    """One level of a decoder or an encoder.

    Attributes:
        width: channels of its blocks.
        blocks: how many there are.
        groups: of the blocks' 3x3 convolutions in the wide form (1x1, grouped 3x3, 1x1, grouped 3x3); 0 for the plain
            form of three 3x3.
        frames: frames that one becomes (decoder) or that become one (encoder), 1 or more.
    """

    width: int
    blocks: int
    groups: int
    frames: int


@dataclass(frozen=True)
class TinyHalf:
    """A decoder or an encoder.

    Attributes:
        levels: in the order in which they run.
        outer: channels beside the head of a decoder, behind the stem of an encoder.
    """

    levels: tuple[TinyLevel, ...]
    outer: int

    @property
    def frames(self) -> int:
        """Frames of a clip for each latent frame."""
        return math.prod(level.frames for level in self.levels)


@dataclass(frozen=True)
class TinyConfig:
    """A tiny autoencoder: latents [C, f, h, w] <-> RGB, ``scale_t`` frames and ``scale_s`` pixels a side for each.

    Attributes:
        latent_channels: C. The latents are those that the transformer works in (zero mean, unit variance).
        patch_size: side of the square of pixels that the decoder's last convolution gives at once.
        decoder: always there. ``encoder``: where the file has one.
    """

    latent_channels: int
    patch_size: int
    decoder: TinyHalf
    encoder: TinyHalf | None = None

    @property
    def scale_t(self) -> int:
        return self.decoder.frames

    @property
    def scale_s(self) -> int:
        return self.patch_size * 2 ** len(self.decoder.levels)

    @property
    def trim(self) -> int:
        """Frames at the beginning of what the decoder gives that are dropped: f latents stand for 1 + t (f - 1)."""
        return self.scale_t - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TinyConfig:
        """What :meth:`to_dict` gave."""
        halves = {name: _half(values[name]) for name in ("decoder", "encoder") if values.get(name) is not None}
        return cls(values["latent_channels"], values["patch_size"], **halves)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> TinyConfig:
        """The configuration that tensors of these names and shapes are for.

        Only what decides the layout is looked at; that every other tensor fits is for strict loading to say.

        Raises:
            CheckpointError: they are not in the TAEHV form; what is missing or odd.
        """
        layers: dict[str, dict[int, dict[str, Shape]]] = {"decoder": {}, "encoder": {}}
        for name, shape in shapes.items():
            if found := _NUMBERED.fullmatch(name):
                layers[found[1]].setdefault(int(found[2]), {})[found[3]] = shape
        if not layers["decoder"]:
            some = ", ".join(repr(name) for name in sorted(shapes)[:4]) or "nothing"
            raise CheckpointError(f"not a tiny autoencoder of the TAEHV form: no 'decoder.<n>.' tensors, only {some}")
        decoder = _Layers("decoder", layers["decoder"])
        levels = tuple(decoder.upward())
        channels, patch = decoder.weight(1)[1], _patch(decoder.weight(decoder.last)[0])
        outer = decoder.weight(decoder.last)[1]
        encoder = None
        if layers["encoder"]:
            ladder = _Layers("encoder", layers["encoder"])
            encoder = TinyHalf(tuple(ladder.downward()), ladder.weight(0)[0])
        return cls(channels, patch, TinyHalf(levels, outer), encoder)


def _half(values: Mapping[str, Any]) -> TinyHalf:
    return TinyHalf(tuple(TinyLevel(**level) for level in values["levels"]), values["outer"])


def _patch(channels: int) -> int:
    side = math.isqrt(channels // 3)
    if 3 * side * side != channels or not side:
        raise CheckpointError(
            f"the decoder's last layer gives {channels} channels, not 3 colours of a square of pixels"
        )
    return side


class _Layers:
    """The layers of one half by number: the names of each one's tensors behind the number, with their shapes."""

    def __init__(self, half: str, layers: Mapping[int, Mapping[str, Shape]]) -> None:
        self.half, self.layers = half, layers

    @property
    def last(self) -> int:
        return max(self.layers)

    def weight(self, number: int, name: str = "weight") -> Shape:
        """Shape [out, in, kh, kw] of a convolution's weight; CheckpointError if there is no such one."""
        shape = self.layers.get(number, {}).get(name)
        key = f"{self.half}.{number}.{name}"
        if shape is None:
            raise CheckpointError(f"not in the TAEHV form: tensor {key!r} is missing")
        if len(shape) != 4 or 0 in shape:
            raise CheckpointError(f"not in the TAEHV form: tensor {key!r} has shape {list(shape)}, expected 4 sizes")
        return shape

    def upward(self) -> Iterator[TinyLevel]:
        """Levels of a decoder: blocks, then growing in time."""
        start = 3
        for number in self._changes():
            out, width = self.weight(number, "conv.weight")[:2]
            # Between the blocks and the growing stands the doubling of H and W, which has a number and no tensor.
            yield self._level(range(start, number - 1), width, out, number)
            start = number + 2

    def downward(self) -> Iterator[TinyLevel]:
        """Levels of an encoder: pooling in time, a convolution of stride 2, then blocks."""
        changes = self._changes()
        for number, after in zip(changes, [*changes[1:], self.last], strict=True):
            width, stacked = self.weight(number, "conv.weight")[:2]
            yield self._level(range(number + 2, after), width, stacked, number)

    def _changes(self) -> list[int]:
        """Numbers of the layers that change the number of frames."""
        found = sorted(number for number, layer in self.layers.items() if "conv.weight" in layer)
        if not found:
            raise CheckpointError(f"not in the TAEHV form: no level in the {self.half} (no tensor '<n>.conv.weight')")
        return found

    def _level(self, blocks: range, width: int, stacked: int, number: int) -> TinyLevel:
        if stacked % width or not 0 < len(blocks) <= len(self.layers):
            raise CheckpointError(
                f"not in the TAEHV form: around '{self.half}.{number}.conv.weight' stand {len(blocks)} blocks of width "
                f"{width}, and {stacked} channels that are to be whole frames of it"
            )
        first = self.layers.get(blocks[0], {})
        groups = width // self.weight(blocks[0], "conv.2.weight")[1] if "conv.6.weight" in first else 0
        return TinyLevel(width, len(blocks), groups, stacked // width)

"""What a stream of frames leaves behind in a causal autoencoder, and in which pieces its frames are worked off.

Two ways, with one meaning:

- *Latent frame by latent frame*, for inference on a CPU. Each convolution in time has a :class:`Window`: what makes its
  input writes new frames behind those before them, and the convolution reads them where they lie. What one latent
  frame stands for goes as deep as it can before the next one enters, so that memory does not grow with the frames; in
  pieces of fewer frames if memory is short. Every frame is computed by the same calls on the same shapes whatever chunk
  it came in: any split of a clip gives the same bits.
- *Chunk by chunk*, else: the frames of a chunk pass a layer together, and each convolution keeps the last of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glimt.models.wan import vae_ops
from glimt.models.wan.vae_tiles import Tile

T = TypeVar("T")


class Room:
    """One piece of memory for the input of whichever convolution is at work: its history, and the frames that come."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def frames(self, piece: Tensor, count: int) -> Tensor:
        """Room for ``count`` frames like those of ``piece [B, C, F, H, W]``; whoever asks next gets the same."""
        b, c, _, h, w = piece.shape
        size = b * c * count * h * w
        if self._flat is None or self._flat.numel() < size or self._flat.dtype != piece.dtype:
            self._flat = None  # the smaller one is not kept meanwhile
            self._flat = torch.empty(size, dtype=piece.dtype, device=piece.device)
        return vae_ops.as_frames(self._flat[:size], (b, c, count, h, w), piece)

    @property
    def nbytes(self) -> int:
        return 0 if self._flat is None else self._flat.nbytes


class Window:
    """The last frames of one convolution's input; zeros before a clip.

    Between two pieces it holds only the ``history`` that the convolution looks back on. While a piece passes they lie
    together in the shared room, where the convolution reads them.

    Attributes:
        count: frames that have come.
    """

    def __init__(self, piece: Tensor, history: int, room: Room) -> None:
        self._history = vae_ops.empty_frames(piece, history).zero_()
        self._shared, self._room = room, piece
        self.count = 0

    def room(self, piece: Tensor) -> Tensor:
        """Room for the next frames, like ``piece``, to be written before :meth:`last` is asked for."""
        history, count = self._history.shape[2], piece.shape[2]
        self._room = self._shared.frames(piece, history + count)
        self._room[:, :, :history] = self._history
        self.count += count
        return self._room[:, :, history:]

    def last(self, count: int) -> Tensor:
        """The newest ``count`` frames, to be read before another window is written: [B, C, count, H, W]."""
        self._history.copy_(self._room[:, :, -self._history.shape[2] :])
        found = self._room[:, :, -count:]
        self._room = self._history
        return found

    @property
    def nbytes(self) -> int:
        return self._history.nbytes


class CausalCache:
    """One clip's state; empty at its start.

    Attributes:
        first: true until the first chunk has passed. The first frame of a clip stands for itself (it is neither
            merged nor doubled in time), which only the first chunk has to know.
        keep: false when no further chunk will follow, so that nothing is stored for it.
        alone: true while the only frame of a clip passes, which needs no history at all.
        tile: the part of the picture that is decoded; ``None``: all of it.
        piece: the most frames that pass a layer together where latent frames go one by one.
    """

    def __init__(self, *, keep: bool = True, tile: Tile | None = None, piece: int = 4) -> None:
        self.tile, self.piece = tile, piece
        self.first = True
        self.keep = keep
        self.alone = False
        self._room = Room()
        self._frames: dict[nn.Module, Tensor] = {}
        self._windows: dict[nn.Module, Window] = {}
        self._prepared: dict[nn.Module, Any] = {}

    def get(self, module: nn.Module) -> Tensor | None:
        return self._frames.get(module)

    def put(self, module: nn.Module, frames: Tensor, count: int) -> None:
        """Store the last ``count`` frames a module saw: where they are, if they are half of the chunk or more.

        Else copied: a view would keep the whole chunk alive.
        """
        if not self.keep:
            return
        before, missing = self._frames.get(module), count - frames.shape[2]
        if before is not None and missing > 0:
            self._frames[module] = torch.cat([before[:, :, -missing:], frames], dim=2)
        else:
            last = frames[:, :, -count:]
            self._frames[module] = last if 2 * count >= frames.shape[2] else last.clone()

    def hold(self, module: nn.Module, frame: Tensor) -> None:
        """Keep a frame until the one comes that it is merged with."""
        self._frames[module] = frame

    def take(self, module: nn.Module) -> Tensor | None:
        """The frame that was held, which is no longer."""
        return self._frames.pop(module, None)

    def window(self, module: nn.Module, piece: Tensor, history: int) -> Window:
        """The window of a module, made when its first ``piece`` of frames comes."""
        if module not in self._windows:
            self._windows[module] = Window(piece, history, self._room)
        return self._windows[module]

    def prepared(self, module: nn.Module, make: Callable[[], T]) -> T:
        """What ``make`` makes of a module's weights, once a clip: they do not change meanwhile."""
        if module not in self._prepared:
            self._prepared[module] = make()
        found: T = self._prepared[module]
        return found

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [B, C, F, H, W]`` in the pieces that pass the next layers one after the other; none of no frames."""
        if not x.shape[2]:
            return ()
        return vae_ops.pieces(x, self.piece) if vae_ops.goes_by_frames(x) else (x,)

    def size_bytes(self) -> int:
        frames = sum(held.nbytes for held in self._frames.values())
        return frames + sum(held.nbytes for held in self._windows.values()) + self._room.nbytes


def joined(parts: list[Tensor]) -> Tensor:
    """Pieces put together along time again."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

"""What a stream of frames leaves behind in a causal autoencoder, and in which pieces its frames are worked off.

Two ways, with one meaning:

- *Frame by frame*, for inference on a CPU. Each convolution in time has a :class:`Window`: its producer writes the next
  frame behind those before it, and the convolution reads them where they lie. A frame goes as deep as it can before
  the next one enters, so that little more than the windows is in memory however many frames there are. Every frame
  is computed by the same calls on the same shapes whatever chunk it came in: any split of a clip gives the same bits.
- *Chunk by chunk*, else: the frames of a chunk pass a layer together, and each convolution keeps copies of the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glimt.models.wan import vae_ops
from glimt.models.wan.vae_tiles import Tile

T = TypeVar("T")


class Window:
    """The last frames of one convolution's input, consecutive in memory and in time.

    There is room for twice the ``history`` that a convolution looks back on; when it is full, the last half moves to
    the front: a frame is copied once for each that comes.

    Attributes:
        count: frames that have come.
    """

    def __init__(self, frame: Tensor, history: int) -> None:
        self._history = history
        self._frames = vae_ops.empty_frames(frame, 2 * history)
        self._end = 0
        self.count = 0

    def slot(self) -> Tensor:
        """Room for the next frame [B, C, 1, H, W], to be written before :meth:`seen` is asked for."""
        if self._end == self._frames.shape[2]:
            self._frames[:, :, : self._history] = self._frames[:, :, self._end - self._history :]
            self._end = self._history
        self._end += 1
        self.count += 1
        return self._frames[:, :, self._end - 1 : self._end]

    def seen(self) -> Tensor:
        """The newest frame and the ``history`` before it, fewer at the start of a clip: [B, C, n, H, W]."""
        return self._frames[:, :, max(self._end - 1 - self._history, 0) : self._end]

    @property
    def nbytes(self) -> int:
        return self._frames.nbytes


class CausalCache:
    """One clip's state; empty at its start.

    Attributes:
        first: true until the first chunk has passed. The first frame of a clip stands for itself (it is neither
            merged nor doubled in time), which only the first chunk has to know.
        keep: false when no further chunk will follow, so that nothing is stored for it.
        alone: true while the only frame of a clip passes, which needs no history at all.
        tile: the part of the picture that is decoded; ``None``: all of it.
    """

    def __init__(self, *, keep: bool = True, tile: Tile | None = None) -> None:
        self.tile = tile
        self.first = True
        self.keep = keep
        self.alone = False
        self._frames: dict[nn.Module, Tensor] = {}
        self._windows: dict[nn.Module, Window] = {}
        self._prepared: dict[nn.Module, Any] = {}

    def get(self, module: nn.Module) -> Tensor | None:
        return self._frames.get(module)

    def put(self, module: nn.Module, frames: Tensor, count: int) -> None:
        """Store the last ``count`` frames a module saw. Copied: a view would keep the whole chunk alive."""
        if not self.keep:
            return
        before, missing = self._frames.get(module), count - frames.shape[2]
        if before is not None and missing > 0:
            self._frames[module] = torch.cat([before[:, :, -missing:], frames], dim=2)
        else:
            self._frames[module] = frames[:, :, -count:].clone()

    def hold(self, module: nn.Module, frame: Tensor) -> None:
        """Keep a frame until the one comes that it is merged with."""
        self._frames[module] = frame

    def take(self, module: nn.Module) -> Tensor | None:
        """The frame that was held, which is no longer."""
        return self._frames.pop(module, None)

    def window(self, module: nn.Module, frame: Tensor, history: int) -> Window:
        """The window of a module, made for its first ``frame``."""
        if module not in self._windows:
            self._windows[module] = Window(frame, history)
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
        return vae_ops.single_frames(x) if vae_ops.goes_by_frames(x) else (x,)

    def size_bytes(self) -> int:
        frames = sum(held.nbytes for held in self._frames.values())
        return frames + sum(held.nbytes for held in self._windows.values())


def joined(parts: list[Tensor]) -> Tensor:
    """Pieces put together along time again."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

"""What earlier chunks of one clip leave behind for the next one, in a tiny autoencoder."""

from __future__ import annotations

from torch import Tensor, nn


class TinyState:
    """Explicit state of one clip: empty at its start, of a fixed size however long it gets.

    Attributes:
        first: true until a chunk has passed; the decoder drops its first frames then.
        seen: frames that the encoder has been given.
        frames: by layer, the frames [B, C, n, H, W] it keeps: the last one a block saw, or those that a pool of the
            encoder has not enough of yet.
    """

    def __init__(self) -> None:
        self.first = True
        self.seen = 0
        self.frames: dict[nn.Module, Tensor] = {}

    def size_bytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())

"""From finished latents to frames, a chunk at a time: memory is one chunk's, and the first frames come early.

Where that is still too much, a tile at a time: all frames of one tile, then of the next. Those that wait for the last
tile do so in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import IO

import numpy as np
import torch
from torch import Tensor

from glimt.errors import OutputError
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.models.wan.vae_tiles import Box, Tile
from glimt.pipeline.events import FrameChunk, Frames
from glimt.pipeline.guard import check_frames
from glimt.plan import DecodePlan, GenerationPlan
from glimt_kernels import frames_to_uint8


def decode(vae: WanVae, latents: Tensor, plan: GenerationPlan, variant: int) -> Generator[FrameChunk, None, None]:
    """Frames of normalized latents [1, C, f, h, w], the VAE's causal cache carried from chunk to chunk.

    Raises:
        NonFiniteError: pixels that are not finite.
        OutputError: no room on the disk for frames that wait for other tiles.
    """
    index = 0
    for frames in decoded(vae, latents, plan.decode):
        yield FrameChunk(index, frames, plan.request.fps, variant)
        index += len(frames)


def decoded(vae: WanVae, latents: Tensor, layout: DecodePlan) -> Generator[Frames, None, None]:
    """The same as plain arrays [n, H, W, 3] uint8."""
    if not layout.tiled:
        yield from _decode_tile(vae, latents, layout, None)
        return
    tiles = layout.tiles(vae.config, *latents.shape[3:])
    scale = vae.config.scale_factor_spatial
    with ExitStack() as stack:
        waiting = [stack.enter_context(_Waiting(tile.core.scaled(scale))) for tile in tiles[:-1]]
        for tile, room in zip(tiles, waiting, strict=False):
            for frames in _decode_tile(vae, latents, layout, tile):
                room.put(frames)
        for frames in _decode_tile(vae, latents, layout, tiles[-1]):
            yield _assembled(frames, tiles[-1].core.scaled(scale), waiting)


def _decode_tile(vae: WanVae, latents: Tensor, layout: DecodePlan, tile: Tile | None) -> Generator[Frames, None, None]:
    cache, index, done = CausalCache(tile=tile, piece=layout.piece), 0, 0
    while done < latents.shape[2]:
        part = latents[:, :, done : done + (layout.chunk if done else 1)]  # the first, which is not doubled, by itself
        done += part.shape[2]
        cache.keep = done < latents.shape[2]
        frames = _decode_chunk(vae, part, cache, index)
        yield frames
        index += len(frames)


class _Waiting:
    """Frames of one tile, in a file without a name, from first to last and then read again so."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._read_bytes = 0

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, frames: Frames) -> None:
        try:
            self._file.write(frames.data)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"decoding in tiles keeps frames in {tempfile.gettempdir()} until the last tile is there, and they "
                f"cannot be written: {error.strerror}; free some space, or set TMPDIR to another folder"
            ) from error

    def take(self, count: int) -> Frames:
        """The next ``count`` frames [count, height, width, 3]."""
        size = count * self.box.area * 3
        self._file.seek(self._read_bytes)
        self._read_bytes += size
        return np.frombuffer(self._file.read(size), np.uint8).reshape(count, self.box.height, self.box.width, 3)


def _assembled(frames: Frames, box: Box, waiting: Sequence[_Waiting]) -> Frames:
    """Frames of the last tile, at the lower right, with those of all others around them."""
    whole = np.empty((len(frames), box.bottom, box.right, 3), np.uint8)
    whole[:, box.top :, box.left :] = frames
    for room in waiting:
        part = room.box
        whole[:, part.top : part.bottom, part.left : part.right] = room.take(len(frames))
    return whole


@torch.inference_mode()
def _decode_chunk(vae: WanVae, latents: Tensor, cache: CausalCache, index: int) -> Frames:
    """[B, C, f, h, w] -> [B * n, H, W, 3] uint8."""
    weight = vae.post_quant_conv.weight
    pixels = vae.decode_chunk(vae.denormalize(latents.to(weight.device)).to(weight.dtype), cache)
    check_frames(pixels, index)
    frames: Frames = frames_to_uint8(pixels.float()).flatten(0, 1).cpu().numpy()
    return frames

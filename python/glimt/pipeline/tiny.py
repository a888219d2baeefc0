"""From finished latents to frames by the tiny decoder: a chunk at a time, as the full one does it."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from glimt.models.taehv.model import TinyAutoencoder
from glimt.models.taehv.state import TinyState
from glimt.pipeline.events import FrameChunk, Frames
from glimt.pipeline.guard import check_frames
from glimt.plan import DecodePlan, GenerationPlan
from glimt_kernels import frames_to_uint8


def decode_tiny(
    tiny: TinyAutoencoder, latents: Tensor, plan: GenerationPlan, variant: int
) -> Generator[FrameChunk, None, None]:
    """Frames of normalized latents [1, C, f, h, w], what each block remembers carried from chunk to chunk.

    Raises:
        NonFiniteError: pixels that are not finite.
    """
    index = 0
    for frames in decoded_tiny(tiny, latents, plan.decode):
        yield FrameChunk(index, frames, plan.request.fps, variant)
        index += len(frames)


def decoded_tiny(tiny: TinyAutoencoder, latents: Tensor, layout: DecodePlan) -> Generator[Frames, None, None]:
    """The same as plain arrays [n, H, W, 3] uint8."""
    state, index = TinyState(), 0
    for start in range(0, latents.shape[2], layout.chunk):
        frames = _decode_chunk(tiny, latents[:, :, start : start + layout.chunk], state, index)
        yield frames
        index += len(frames)


@torch.inference_mode()
def _decode_chunk(tiny: TinyAutoencoder, latents: Tensor, state: TinyState, index: int) -> Frames:
    """[1, C, f, h, w] -> [n, H, W, 3] uint8."""
    pixels = tiny.decode_chunk(latents.to(next(tiny.parameters()).dtype), state)
    check_frames(pixels, index)
    frames: Frames = frames_to_uint8(pixels.float())[0].cpu().numpy()
    return frames

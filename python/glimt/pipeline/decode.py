"""From finished latents to frames, a chunk at a time: memory is one chunk's, and the first frames come early."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.pipeline.events import FrameChunk, Frames
from glimt.pipeline.guard import check_frames
from glimt.plan import GenerationPlan
from glimt_kernels import frames_to_uint8


def decode(vae: WanVae, latents: Tensor, plan: GenerationPlan, variant: int) -> Generator[FrameChunk, None, None]:
    """Frames of normalized latents [1, C, f, h, w], the VAE's causal cache carried from chunk to chunk.

    Raises:
        NonFiniteError: pixels that are not finite.
    """
    cache, index = CausalCache(), 0
    for start in range(0, latents.shape[2], plan.decode_chunk):
        cache.keep = start + plan.decode_chunk < latents.shape[2]
        frames = _decode_chunk(vae, latents[:, :, start : start + plan.decode_chunk], cache, index)
        yield FrameChunk(index, frames, plan.request.fps, variant)
        index += len(frames)


def decode_stills(vae: WanVae, latents: Tensor) -> Frames:
    """The first, middle and last latent frame, each decoded as if it began a clip: [n, H, W, 3] uint8, n at most 3."""
    frames = latents.shape[2]
    chosen = sorted({0, frames // 2, frames - 1})
    batch = torch.cat([latents[:, :, i : i + 1] for i in chosen])
    return _decode_chunk(vae, batch, CausalCache(keep=False), 0)


@torch.inference_mode()
def _decode_chunk(vae: WanVae, latents: Tensor, cache: CausalCache, index: int) -> Frames:
    """[B, C, f, h, w] -> [B * n, H, W, 3] uint8."""
    dtype = vae.post_quant_conv.weight.dtype
    pixels = vae.decode_chunk(vae.denormalize(latents).to(dtype), cache)
    check_frames(pixels, index)
    frames: Frames = frames_to_uint8(pixels.float()).flatten(0, 1).cpu().numpy()
    return frames

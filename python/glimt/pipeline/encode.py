"""From frames to latents, as they come: memory is a few frames', however long the clip."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from glimt.errors import RequestError
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.pipeline.events import Frames
from glimt.pipeline.guard import check_encoded
from glimt.shapes import round_frames


@torch.inference_mode()
def encode(vae: WanVae, frames: Iterable[Frames]) -> Tensor:
    """Normalized mean latents [1, C, f, h, w], float32 on the CPU, of ``frames``: [n, H, W, 3] uint8, n as it comes.

    Raises:
        RequestError: no frames, or not ``scale_t * k + 1`` of them.
        NonFiniteError: latents that are not finite.
    """
    scale, cache = vae.config.scale_factor_temporal, CausalCache()
    waiting: list[Tensor] = []
    found: list[Tensor] = []
    count = 0
    for some in frames:
        for frame in some:
            waiting.append(torch.from_numpy(frame))
            count += 1
            if len(waiting) == (1 if count == 1 else scale):
                found.append(_encode_chunk(vae, torch.stack(waiting), cache))
                waiting.clear()
    if waiting or not found:
        legal = " or ".join(str(n) for n in round_frames(count, scale)) if count else f"1 or {1 + scale}"
        raise RequestError(f"num_frames: {count} frames came, it takes {scale} n + 1; nearest: {legal}")
    latents = torch.cat(found, dim=2)
    check_encoded(latents)
    return latents


def _encode_chunk(vae: WanVae, frames: Tensor, cache: CausalCache) -> Tensor:
    """[n, H, W, 3] uint8 -> [1, C, m, h, w]."""
    weight = vae.post_quant_conv.weight
    pixels = frames.to(weight.device).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1.0).to(weight.dtype)
    mean, _ = vae.encode_chunk(pixels, cache)
    return vae.normalize(mean.float()).cpu()

"""How a clip is tied to given images: what the transformer is fed besides the noisy latents.

Three forms, those of Diffusers' ``WanPipeline`` and ``WanImageToVideoPipeline``:

- nothing (text to video);
- known latent frames (Wan 2.2 TI2V): the image's latents stand in for the first latent frame at every step, with
  timestep 0 for its tokens, and once more at the end;
- extra channels (Wan 2.1 I2V and FLF2V, Wan 2.2 I2V-A14B): a mask [4, f, h, w] of the known frames and the latents of a
  clip that shows them and is mid-grey elsewhere, beside the noisy latents.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from glimt.errors import RequestError
from glimt.images import ImageFile, ImageSource
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.request import ResolvedRequest
from glimt.shapes import LatentGrid, PixelGrid

# What Pillow's decoders raise for damaged files.
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error)
# [H, W, 3] uint8 RGB.
Picture: TypeAlias = "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]"


@dataclass(frozen=True)
class Condition:
    """``known`` [1, C, f_known, h, w]: normalized latents of the clip's first frames; ``extra`` [1, C', f, h, w]:
    channels put behind the noisy ones. Either may be ``None``."""

    known: Tensor | None = None
    extra: Tensor | None = None

    def model_input(self, x: Tensor) -> Tensor:
        """Noisy latents [1, C, f, h, w] as the transformer sees them, float32."""
        x = self.impose(x.float())
        return x if self.extra is None else torch.cat([x, self.extra], dim=1)

    def impose(self, x: Tensor) -> Tensor:
        """``x`` with the known frames put in their place."""
        if self.known is None:
            return x
        return torch.cat([self.known.to(x.dtype), x[:, :, self.known.shape[2] :]], dim=2)

    def time_index(self, step: int, clean: int, frames: int) -> Tensor:
        """Which row of the schedule each group of tokens is at: [1, 1], or [1, f] with ``clean`` for known frames."""
        if self.known is None:
            return torch.tensor([[step]])
        return torch.tensor([[clean if frame < self.known.shape[2] else step for frame in range(frames)]])


def known_first_frame(vae: WanVae, image: Tensor) -> Condition:
    """Form two: the image's latents as the first latent frame. ``image``: pixels [1, 3, 1, H, W]."""
    return Condition(known=vae.normalize(vae.encode(image)[0].float()))


def known_channels(
    vae: WanVae, first: Tensor, last: Tensor | None, clip: PixelGrid, grid: LatentGrid, scale_t: int
) -> Condition:
    """Form three. ``first``, ``last``: pixels [1, 3, 1, H, W]."""
    mask = torch.zeros(grid.frames, scale_t, device=first.device)
    mask[0] = 1.0
    if last is not None:
        mask[-1, -1] = 1.0
    mask = mask.T.reshape(1, scale_t, grid.frames, 1, 1).expand(-1, -1, -1, grid.height, grid.width)
    latents = vae.normalize(_encode(vae, first, last, clip.frames, scale_t).float())
    return Condition(extra=torch.cat([mask, latents], dim=1))


def _encode(vae: WanVae, first: Tensor, last: Tensor | None, frames: int, scale_t: int) -> Tensor:
    """Mean latents of the clip first, grey, ..., grey, last; a chunk at a time, so that memory is one chunk's."""
    cache = CausalCache()
    means = [vae.encode_chunk(first, cache)[0]]
    grey = first.new_zeros(1, 3, scale_t, *first.shape[3:])
    for start in range(1, frames, scale_t):
        chunk = grey
        if last is not None and start + scale_t >= frames:
            chunk = torch.cat([grey[:, :, 1:], last], dim=2)
        means.append(vae.encode_chunk(chunk, cache)[0])
    return torch.cat(means, dim=2)


def load_pictures(request: ResolvedRequest) -> list[Picture]:
    """The request's first and last image, those that it has, as they are (turned upright where their file says how).

    Raises:
        RequestError: every one that cannot be decoded: damaged, cut short, or too large to be a picture.
    """
    given = [(name, source) for name in ("image", "last_image") if (source := getattr(request, name)) is not None]
    found = [_picture_or_problem(name, source) for name, source in given]
    problems = [problem for problem in found if isinstance(problem, str)]
    if problems:
        raise RequestError(*problems)
    return [picture for picture in found if not isinstance(picture, str)]


def _picture_or_problem(name: str, source: ImageSource) -> Picture | str:
    from PIL import Image, ImageOps

    if not isinstance(source, ImageFile):
        return np.frombuffer(source.rgb, np.uint8).reshape(source.height, source.width, 3)
    try:
        with Image.open(source.path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        return f"{name}: {source.path!r} cannot be decoded ({error}); save it anew, or give another"


def to_pixels(picture: Picture, height: int, width: int) -> Tensor:
    """The picture stretched to ``width`` x ``height`` (Lanczos, as Diffusers does): [1, 3, 1, H, W] in [-1, 1]."""
    from PIL import Image

    if picture.shape[:2] != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(picture.astype(np.float32) / 255.0) * 2.0 - 1.0
    return pixels.permute(2, 0, 1)[None, :, None].contiguous()

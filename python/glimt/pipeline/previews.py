"""Previews of a run: small clips from a step's estimate of the finished latents, by the tiny decoder or a linear map.

The map is fitted once for each autoencoder, on drawn clips that it encodes and decodes, and kept under its digest in
the user's cache folder (``~/.cache/glimt/previews``, ``GLIMT_PREVIEWS`` for another place, ``off`` for none). A run's
report says which of these happened.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from glimt.models import latent_rgb
from glimt.models.taehv.model import TinyAutoencoder
from glimt.models.wan.vae import WanVae
from glimt.pipeline.events import Frames
from glimt.plan import GenerationPlan
from glimt.plan.previews import FIT_CLIPS, fit_grids, linear_side
from glimt_kernels import frames_to_uint8, references_only

VARIABLE = "GLIMT_PREVIEWS"


class Autoencoders(Protocol):
    """Where a run finds its autoencoders; loading one may take a while."""

    def vae(self) -> WanVae: ...

    def tiny(self) -> TinyAutoencoder: ...

    def digest(self, name: str) -> str:
        """SHA-256, in hex, of a component."""


class Previewer:
    """Makes the previews of one run as its plan says. ``origin``: what made them, in words for the report."""

    def __init__(self, models: Autoencoders, plan: GenerationPlan) -> None:
        self._models, self._plan = models, plan
        self._map: Tensor | None = None
        self.origin = str(plan.preview) if plan.preview is not None else ""

    def prepare(self) -> None:
        """Find or fit the linear map, where the plan has one.

        Raises:
            CheckpointError: an autoencoder that cannot be loaded.
        """
        if self._plan.preview is None or self._plan.preview.by != "linear":
            return
        began, path = time.perf_counter(), _path(self._models.digest("vae"))
        found = None if path is None else _read(path)
        if found is None:
            vae = self._models.vae()
            found = fit_map(vae)
            took = f"fitted in {time.perf_counter() - began:.1f} s"
            self.origin += f"; {took}, {_write(path, found) if path is not None else f'not kept ({VARIABLE} is off)'}"
        else:
            self.origin += f"; fitted before, read from {path}"
        self._map = found

    def __call__(self, x0: Tensor) -> Frames:
        """A small clip [f, h, w, 3] uint8 of normalized latents [1, C, f, h', w']."""
        with references_only(self._plan.exact):
            return self._make(x0)

    @torch.inference_mode()
    def _make(self, x0: Tensor) -> Frames:
        if self._map is not None:
            pixels = latent_rgb.apply(self._map.to(x0.device), x0)
        else:
            assert self._plan.preview is not None
            tiny = self._models.tiny()
            dtype = next(tiny.parameters()).dtype
            pixels = tiny.glimpse(x0.to(dtype), self._plan.preview.doublings)
        frames: Frames = frames_to_uint8(pixels.float())[0].cpu().numpy()
        return frames


@torch.inference_mode()
def fit_map(vae: WanVae) -> Tensor:
    """The linear map of an autoencoder's normalized latents to the pixels that it decodes (see ``models.latent_rgb``).

    The latents are those of drawn clips; what they decode to, and not the clips, is what a preview should be like.
    """
    weight, (_, grid) = vae.post_quant_conv.weight, fit_grids(vae.config)
    latents, pixels = [], []
    for seed in range(FIT_CLIPS):
        clip = drawn_clip(seed, grid.frames, grid.height, grid.width)
        mean, _ = vae.encode(clip[None].to(weight.device, weight.dtype))
        latents.append(vae.normalize(mean.float()).cpu())
        pixels.append(vae.decode(mean).float().cpu())
    return latent_rgb.fit(torch.cat(latents), torch.cat(pixels), linear_side(vae.config))


def drawn_clip(seed: int, frames: int, height: int, width: int, shapes: int = 12) -> Tensor:
    """Pixels [3, F, H, W] in [-1, 1]: discs and boxes of many colours that move before a ground that changes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    t = torch.linspace(0, 1, frames).view(-1, 1, 1)
    y, x = torch.linspace(0, 1, height).view(1, -1, 1), torch.linspace(0, 1, width).view(1, 1, -1)
    mix = ((y - 0.5) * (draw(1) * 2 - 1) + (x - 0.5) * (draw(1) * 2 - 1) + 0.5 + 0.2 * t).clamp(0, 1)
    clip = draw(3, 1, 1, 1) * mix + draw(3, 1, 1, 1) * (1 - mix)
    for number in range(shapes):
        (y0, x0, vy, vx), size = draw(4), 0.05 + 0.2 * draw(1)
        dy, dx = (y - y0 - 0.3 * (vy - 0.5) * t).abs(), (x - x0 - 0.3 * (vx - 0.5) * t).abs()
        inside = torch.maximum(dy, dx) if number % 2 else (dy**2 + dx**2).sqrt()
        clip = torch.where(inside < size, draw(3, 1, 1, 1) * (1 - 0.3 * dy / size), clip)
    return clip.expand(3, frames, height, width) * 2 - 1


def _path(digest: str) -> Path | None:
    """The file of a map; None where none is to be kept."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(asked or Path(home, "glimt", "previews")).expanduser() / f"{digest}.safetensors"


def _read(path: Path) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["map"]
    except (OSError, SafetensorError, KeyError):  # not there, or not whole: it is fitted again
        return None


def _write(path: Path, weight: Tensor) -> str:
    """Keep a map; what became of that, in words."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(save({"map": weight.contiguous()}))
        Path(file.name).replace(path)  # another process may be reading it
    except OSError as error:
        return f"could not be kept in {path.parent}: {error.strerror or error}"
    return f"kept in {path}"

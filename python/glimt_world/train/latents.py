"""Clips as normalized latents: a growing store that the transformer trains from, filled while it trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glimt.models.wan.vae import WanVae
from glimt_world.render import render
from glimt_world.scene import Scene
from glimt_world.train.data import presence, scenes, to_pixels
from glimt_world.train.forms import Form


class LatentStore:
    """The newest ``capacity`` clips as float16 latents [C, f, h, w] with their scenes; oldest replaced first.

    With them, bool [f, h, w], the cells where things are.
    """

    def __init__(self, vae: WanVae, form: Form, *, capacity: int, seed: int) -> None:
        self.vae, self.form, self.capacity = vae, form, capacity
        self.source = scenes(seed)
        self.scenes: list[Scene] = []
        self.latents: list[Tensor] = []
        self.things: list[Tensor] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self.latents)

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Render and encode ``count`` new clips."""
        device = next(self.vae.parameters()).device
        batch = [next(self.source) for _ in range(count)]
        form = self.form
        clips = [to_pixels(render(s, num_frames=form.num_frames, height=form.size, width=form.size)) for s in batch]
        pixels = torch.stack(clips).to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16):
            mean, _ = self.vae.encode(pixels)
        for scene, latent in zip(batch, self.vae.normalize(mean.float()).half().cpu(), strict=True):
            self._put(scene, latent.clone())

    def _put(self, scene: Scene, latent: Tensor) -> None:
        f, h, w = latent.shape[1:]
        things = presence(scene, self.form.num_frames, (f, h, w))
        if len(self.latents) < self.capacity:
            self.scenes.append(scene)
            self.latents.append(latent)
            self.things.append(things)
            return
        self.scenes[self._next], self.latents[self._next], self.things[self._next] = scene, latent, things
        self._next = (self._next + 1) % self.capacity

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, list[Scene], Tensor]:
        """``count`` random clips, float32 [count, C, f, h, w]; scenes; bool [count, f, h, w]: where things are."""
        rows = rng.integers(len(self.latents), size=count)
        clips, things = (torch.stack([kept[r] for r in rows]) for kept in (self.latents, self.things))
        return clips.float(), [self.scenes[r] for r in rows], things

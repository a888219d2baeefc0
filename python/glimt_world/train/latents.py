"""Clips as normalized latents: a growing store that the transformer trains from, filled while it trains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from glimt.models.wan.vae import WanVae
from glimt_world.render import render
from glimt_world.scene import Scene
from glimt_world.train.data import presence, scenes, to_pixels
from glimt_world.train.forms import Form


def stands(scene: Scene) -> bool:
    """Whether everything stays where it is, turning or not."""
    return all(thing.motion in ("still", "spinning") for thing in scene.things)


def with_standing(seed: int) -> Iterator[Scene]:
    """Scenes of every kind, and between any two of them one in which things stand: a fifth would have been such."""
    every, standing = scenes(seed), filter(stands, scenes(seed + 1))
    while True:
        yield next(every)
        yield next(standing)


class LatentStore:
    """The newest ``capacity`` clips as float16 latents [C, f, h, w] with their scenes; oldest replaced first.

    With them, bool [f, h, w], the cells where things are.
    """

    def __init__(self, vae: WanVae, form: Form, *, capacity: int, seed: int) -> None:
        self.vae, self.form, self.capacity = vae, form, capacity
        self.source = with_standing(seed)
        self.scenes: list[Scene] = []
        self.latents: list[Tensor] = []
        self.things: list[Tensor] = []
        self.standing: list[bool] = []
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
            self.standing.append(stands(scene))
            return
        self.scenes[self._next], self.latents[self._next], self.things[self._next] = scene, latent, things
        self.standing[self._next] = stands(scene)
        self._next = (self._next + 1) % self.capacity

    def draw(
        self, count: int, rng: np.random.Generator, *, standing: bool = False
    ) -> tuple[Tensor, list[Scene], Tensor]:
        """``count`` random clips, float32 [count, C, f, h, w]; scenes; bool [count, f, h, w]: where things are.

        ``standing``: of scenes in which things stand. Else of all, those about as often as the world draws them.
        """
        still = np.array(self.standing)
        odds = still.astype(float) if standing else np.where(still, 0.2, 1.0)
        rows = rng.choice(len(self.latents), size=count, p=odds / odds.sum())
        clips, things = (torch.stack([kept[r] for r in rows]) for kept in (self.latents, self.things))
        return clips.float(), [self.scenes[r] for r in rows], things

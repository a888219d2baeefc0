"""Endless clips of the little world for training, and the held-out ones for measuring."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from glimt_world.render import render
from glimt_world.scene import Scene, draw_scene


def scenes(seed: int, *, held_out: bool = False, two: float = 0.3) -> Iterator[Scene]:
    """Random scenes for ever: those whose combination of words is held out, or all the others."""
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng, two=two)
        if scene.held_out == held_out:
            yield scene


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)


def random_clip(scene: Scene, rng: np.random.Generator, *, num_frames: int, size: int) -> Tensor:
    """A window of a scene's clip at the pace of 33 frames a clip: float32 [3, num_frames, size, size]."""
    length = (num_frames - 1) / 32
    start = float(rng.uniform(0, 1 - length)) if length < 1 else 0.0
    return to_pixels(render(scene, num_frames=num_frames, height=size, width=size, span=(start, start + length)))

"""Endless clips of the little world for training, and the held-out ones for measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimt_kernels import frames_to_uint8
from glimt_world.render import CONE_HEIGHT, EYE, HORIZON, render
from glimt_world.scene import FOCAL, Scene, Thing, camera_at, draw_scene, pose


def scenes(seed: int, *, held_out: bool = False, two: float = 0.3) -> Iterator[Scene]:
    """Random scenes for ever: those whose combination of words is held out, or all the others."""
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng, two=two)
        if scene.held_out == held_out:
            yield scene


def to_pixels(frames: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """The inverse for a batch of one: [1, 3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3]."""
    frames: npt.NDArray[np.uint8] = frames_to_uint8(pixels.cpu())[0].numpy()
    return frames


def random_clip(scene: Scene, rng: np.random.Generator, *, num_frames: int, size: int = 96, crop: int = 96) -> Tensor:
    """A window in time of a scene's clip, at the pace of 33 frames a clip: float32 [3, num_frames, crop, crop].

    A ``crop`` smaller than the picture lies around a thing: backgrounds are learned long before edges in motion are.
    """
    length = (num_frames - 1) / 32
    start = float(rng.uniform(0, 1 - length)) if length < 1 else 0.0
    frames = render(scene, num_frames=num_frames, height=size, width=size, span=(start, start + length))
    row, col = _corner(scene, rng, start + length / 2, size, crop)
    return to_pixels(frames[:, row : row + crop, col : col + crop])


def _corner(scene: Scene, rng: np.random.Generator, s: float, size: int, crop: int) -> tuple[int, int]:
    """Upper left corner of a square that holds the middle of a random thing at time ``s``, somewhere inside it."""
    top, left, bottom, right = outline(scene, scene.things[int(rng.integers(len(scene.things)))], s)
    centre = np.array([top + bottom, left + right]) / 2 * size + rng.uniform(-0.25, 0.25, 2) * crop
    row, col = np.clip(np.round(centre - crop / 2), 0, size - crop).astype(int)
    return int(row), int(col)


def outline(scene: Scene, thing: Thing, s: float) -> tuple[float, float, float, float]:
    """A box around ``thing`` at time ``s``: top, left, bottom, right, in widths of a square picture from its corner."""
    p, (shift, zoom) = pose(thing, s), camera_at(scene, s)
    scale, tall = zoom * FOCAL / p.z, CONE_HEIGHT if thing.shape == "cone" else 2.0
    base, middle = 0.5 + zoom * HORIZON + scale * (EYE - p.y), 0.5 + scale * p.x + shift
    return base - scale * tall * p.size, middle - scale * p.size, base, middle + scale * p.size


def presence(scene: Scene, num_frames: int, grid: tuple[int, int, int]) -> Tensor:
    """Bool ``grid`` = [f, h, w]: the cells of a clip's latents in which a thing is at some moment."""
    frames, rows, cols = grid
    found = np.zeros(grid, bool)
    for frame in range(num_frames):
        for thing in scene.things:
            top, left, bottom, right = outline(scene, thing, frame / (num_frames - 1))
            across = slice(max(math.floor(left * cols), 0), max(math.ceil(right * cols), 0))
            # The first frame is a latent frame of its own; every later one holds the same number.
            at = -(-frame * (frames - 1) // (num_frames - 1))
            found[at, max(math.floor(top * rows), 0) : max(math.ceil(bottom * rows), 0), across] = True
    return torch.from_numpy(found)

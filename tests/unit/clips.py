"""Clips to write in tests of the video edges, and the settings that go into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glimt.video.mp4 import VideoWriter

RECORD = {
    "model": {"name": "tiny", "source": "tiny", "digest": "0" * 64},
    "request": {"prompt": "a red ball", "seed": 7},
    "versions": {"glimt": "0"},
    "implementations": {},
}


def noise(num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write(path: Path, frames: np.ndarray, fps: object = 24, chunk: int = 4, **options: object) -> VideoWriter:
    with VideoWriter(path, fps, *frames.shape[1:3], **options) as writer:
        for first in range(0, len(frames), chunk):
            writer.write(frames[first : first + chunk])
    return writer

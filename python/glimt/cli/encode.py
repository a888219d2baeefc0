"""``glimt encode``: a video or a picture becomes latents."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from glimt.cli import interruption
from glimt.cli.asking import Problems, engine_config, opened
from glimt.cli.outcome import Outcome
from glimt.cli.progress import Progress, duration, progress
from glimt.env import peak_rss_bytes
from glimt.errors import RequestError
from glimt.shapes import PixelGrid

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glimt.video.clip import Clip


def run(namespace: argparse.Namespace) -> Outcome:
    """Encode, and say where the latents are."""
    from glimt.video import files
    from glimt.video.clip import open_clip
    from glimt.video.latents import SUFFIXES, Latents, save_latents

    problems = Problems()
    with problems.gathered():
        files.check_writable(namespace.output, SUFFIXES)
    with problems.gathered():
        clip = open_clip(namespace.file)
    problems.raise_any()
    engine = opened(namespace, namespace.model, namespace.base, engine_config(namespace))
    grid = _grid(clip, namespace)
    try:
        planned = engine.plan_encode(grid)
    except RequestError as error:
        raise RequestError(*(f"{problem}: {_MEND[problem.partition(':')[0]]}" for problem in error.problems)) from error
    began = time.perf_counter()
    with progress(namespace.quiet) as show:
        digest = engine.vae_digest()
        show.begin("encode", "frames")
        tensor = engine.encode(_followed(clip.read(grid.frames, (grid.height, grid.width)), grid.frames, show))
        show.end()
    fps = clip.fps or Fraction(str(engine.card.fps))
    path = save_latents(
        namespace.output,
        Latents(tensor, engine.card.name, digest, fps, normalized=True, source=clip.path.name),
    )
    result: dict[str, Any] = {
        "path": str(path),
        "shape": list(tensor.shape),
        "frames": grid.frames,
        "height": grid.height,
        "width": grid.width,
        "fps": float(fps),
        "model": engine.card.name,
        "vae_digest": digest,
        "planned_bytes": planned,
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": time.perf_counter() - began,
    }
    return Outcome(
        f"{path}: latents {result['shape']} of {grid} at {float(fps):g} fps, {duration(result['seconds'])}, "
        f"peak {result['peak_rss_bytes'] / 1e6:.0f} MB resident",
        result,
    )


# What is to be typed where a size is not on the model's grid.
_MEND = {
    "num_frames": "say how many frames from the first on are taken, as --frames N",
    "height": "say which size the frames are stretched to, as --size WxH",
    "width": "say which size the frames are stretched to, as --size WxH",
}


def _grid(clip: Clip, namespace: argparse.Namespace) -> PixelGrid:
    """What of the clip is encoded, in which size. RequestError for more frames than there are, or none."""
    width, height = namespace.size if namespace.size is not None else (clip.width, clip.height)
    frames = clip.frames if namespace.frames is None else namespace.frames
    problems = []
    if not 1 <= frames <= clip.frames:
        problems.append(f"num_frames: {frames} of {clip.path}, which has {clip.frames}")
    problems += [f"size: {width}x{height} is no size of a picture"] if min(width, height) < 1 else []
    if problems:
        raise RequestError(*problems)
    return PixelGrid(frames, height, width)


def _followed(frames: Iterator[npt.NDArray[np.uint8]], total: int, show: Progress) -> Iterator[npt.NDArray[np.uint8]]:
    for index, frame in enumerate(frames):
        interruption.check()
        yield frame
        show.update(index + 1, total)

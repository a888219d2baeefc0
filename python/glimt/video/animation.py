"""Animated WebP and GIF: for pages and previews where a video player is too much."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from glimt.errors import MissingDependencyError, OutputError
from glimt.video import files
from glimt.video.mp4 import as_fps

_TICKS_PER_S = {".webp": 1000, ".gif": 100}
_GIF_SHORTEST_TICKS = 2  # browsers play anything shorter at a tenth of the speed


def frame_ticks(num_frames: int, fps: Fraction, ticks_per_s: int) -> list[int]:
    """How many ticks each frame is shown: frame i begins at round(ticks_per_s * i / fps), so no drift builds up."""
    begins = [round(Fraction(i * ticks_per_s) / fps) for i in range(num_frames + 1)]
    return [end - begin for begin, end in pairwise(begins)]


def check_animation(path: files.StrPath, fps: Fraction | float | str) -> None:
    """OutputError (or MissingDependencyError) now if ``save_animation`` would fail for its name, rate or place."""
    files.check_writable(path, tuple(_TICKS_PER_S))
    suffix = files.resolve_target(path, tuple(_TICKS_PER_S)).suffix.lower()
    if suffix == ".gif" and as_fps(fps) > 100 // _GIF_SHORTEST_TICKS:
        raise OutputError(
            f"cannot write {path}: a GIF shows at most {100 // _GIF_SHORTEST_TICKS} frames per second, "
            f"not {fps}; use .webp"
        )
    if suffix == ".webp":
        _require_webp()


def _require_webp() -> None:
    from PIL import features

    if not features.check("webp"):
        raise MissingDependencyError(
            "libwebp (which this Pillow was built without)",
            "write animated WebP",
            install="pip install --force-reinstall --only-binary :all: pillow",
        )


def save_animation(
    path: files.StrPath,
    frames: npt.NDArray[np.uint8],
    fps: Fraction | float | str,
    *,
    quality: int = 85,
    publish: files.Publish = files.publish,
) -> None:
    """Write ``frames`` ``[F, H, W, 3]`` uint8 as an endless loop, WebP or GIF by the name, whole or not at all.

    ``quality`` is WebP's, 0 to 100; a GIF has 256 colours for each frame whatever is asked.
    """
    from PIL import Image

    check_animation(path, fps)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3:] != (3,) or 0 in frames.shape:
        raise OutputError(f"cannot write {path}: {frames.dtype} {list(frames.shape)} is not uint8 [F, H, W, 3]")
    target = files.resolve_target(path, tuple(_TICKS_PER_S))
    suffix = target.suffix.lower()
    unit = 1000 // _TICKS_PER_S[suffix]  # Pillow counts in milliseconds
    durations = [unit * ticks for ticks in frame_ticks(len(frames), as_fps(fps), _TICKS_PER_S[suffix])]
    options: dict[str, Any] = {"quality": quality, "method": 4} if suffix == ".webp" else {"optimize": False}
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    with files.temporary_beside(target) as temporary:
        try:
            pictures[0].save(
                temporary,
                format=suffix[1:].upper(),
                save_all=True,
                append_images=pictures[1:],
                duration=durations,
                loop=0,
                **options,
            )
        except OSError as error:
            raise files.as_output_error(path, error) from error
        publish(temporary, target)

"""Read the frames of a video or a picture one by one, as RGB.

What FFmpeg reads, this reads. Pictures are turned as their file says; colours are converted by the matrix that the file
names, and where it names none by that of its size (BT.601 below 720 lines, BT.709 from there on).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimt.errors import RequestError
from glimt.video.mp4 import import_av

_BT709, _UNSPECIFIED = 1, 2  # code points of ITU-T H.273, table 4
_HD_LINES = 720


@dataclass(frozen=True)
class Clip:
    """A video file, its size and its rate; nothing of it is in memory.

    Attributes:
        frames: how many there are, by counting them in the file without decoding.
        fps: on the mean; ``None`` for a picture.
    """

    path: Path
    frames: int
    height: int
    width: int
    fps: Fraction | None

    def read(self, count: int | None = None, size: tuple[int, int] | None = None) -> Iterator[npt.NDArray[np.uint8]]:
        """The first ``count`` frames (all), one at a time: [1, H, W, 3] uint8, stretched to ``size`` (height, width).

        Raises:
            RequestError: the file ends early, or a frame cannot be decoded.
        """
        av = import_av()
        wanted, seen = self.frames if count is None else count, 0
        try:
            with av.open(f"file:{self.path}") as container:
                for frame in container.decode(video=0):
                    if seen == wanted:
                        break
                    yield _rgb(frame, size or (self.height, self.width))[None]
                    seen += 1
        except (av.FFmpegError, OSError) as error:
            raise RequestError(f"clip: {self.path}: frame {seen} cannot be decoded ({error.strerror})") from error
        if seen < wanted:
            raise RequestError(f"clip: {self.path} ends after {seen} frames, though it says that it has {self.frames}")


def open_clip(path: str | os.PathLike[str]) -> Clip:
    """Look at a video file. Raises RequestError where it is none."""
    name = os.fspath(path)
    if not Path(name).is_file():
        raise RequestError(f"clip: {name}: there is no such file")
    av = import_av()
    try:
        with av.open(f"file:{name}") as container:
            if not container.streams.video:
                raise RequestError(f"clip: {name} holds no pictures")
            stream = container.streams.video[0]
            is_picture = container.format.name.endswith("_pipe") or container.format.name == "image2"
            fps = None if is_picture or not stream.average_rate else Fraction(stream.average_rate)
            first = next(container.decode(video=0))
            height, width = _upright(np.empty((first.height, first.width, 0)), first).shape[:2]
            container.seek(0)
            frames = 1 if is_picture else sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, OSError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or "it has no frames"
        raise RequestError(f"clip: {name} is not a video or picture that can be read ({reason})") from error
    return Clip(Path(name), frames, height, width, fps)


def _rgb(frame: Any, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    hd = frame.colorspace == _BT709 or (frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES)
    picture = frame.reformat(format="rgb24", src_colorspace="ITU709" if hd else "ITU601").to_ndarray()
    picture = _upright(picture, frame)
    if picture.shape[:2] == size:
        return np.ascontiguousarray(picture)
    from PIL import Image

    height, width = size
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _upright(picture: npt.NDArray[Any], frame: Any) -> npt.NDArray[Any]:
    """Turned by the whole quarters that the file asks for."""
    return np.rot90(picture, round(frame.rotation / 90) % 4)

"""Write frames as an H.264 mp4, in a background thread, whole or not at all.

Pictures: R'G'B' is converted with the BT.709 matrix to limited range, 4:2:0, and the file says so (primaries, transfer
and matrix BT.709, range "tv"), so that players show the colours that went in. Source: ITU-R BT.709-6, section 3.
File: the index stands before the data (faststart), so that a browser plays it while it loads; the settings record
(``glimt.video.record``) is in the ``comment`` tag. Frame ``i`` is shown at exactly ``i / fps`` seconds.

PyAV is imported here and nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from glimt.errors import GlimtError, MissingDependencyError, OutputError
from glimt.video import boxes, files
from glimt.video.record import encode_record

SUFFIXES = (".mp4",)
DEFAULT_CRF = 16
MIN_FPS, MAX_FPS = Fraction(1, 100), 1000
_BT709 = 1  # the code point of BT.709 for primaries, transfer and matrix: ITU-T H.273, tables 2-4
_LIMITED_RANGE = 1
_QUEUE_CHUNKS = 4
_POLL_S = 0.1


def import_av() -> Any:
    """The ``av`` module (PyAV); MissingDependencyError with the install command if it is not there."""
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("av", "read and write video files") from error
    return av


def _import_av_with_x264() -> Any:
    av = import_av()
    try:
        av.Codec("libx264", "w")
    except ValueError as error:
        raise MissingDependencyError(
            f"libx264 (an encoder that the FFmpeg of this PyAV {av.__version__} was built without)",
            "write mp4 files",
            install="pip install --force-reinstall --only-binary :all: av",
        ) from error
    return av


def as_fps(value: Fraction | float | str) -> Fraction:
    """Frames per second as an exact ratio: 24, 23.976, "24000/1001"; a float means the decimal number it prints as.

    A float that is (up to rounding) a ratio with a denominator of at most 1001 means that ratio: 24000 / 1001 does.
    """
    try:
        exact = Fraction(value) if isinstance(value, (int, Fraction)) else Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise OutputError(f"fps: {value!r} is not a number; write 24, 23.976 or 24000/1001") from error
    near = exact.limit_denominator(1001)
    fps = near if abs(near - exact) * 10**9 < exact else exact.limit_denominator(10**5)
    if not MIN_FPS <= fps <= MAX_FPS:
        raise OutputError(f"fps: {value} is out of range, which is {float(MIN_FPS)} to {MAX_FPS} frames per second")
    return fps


def check_crf(crf: int) -> None:
    """OutputError unless ``crf`` is a quality of x264 that every player can show."""
    if not 1 <= crf <= 51:
        raise OutputError(f"crf: {crf} is out of range: 1 (best) to 51; 0 is a mode that most players cannot show")


def check_size(height: int, width: int) -> None:
    """OutputError unless H.264 with 4:2:0 colour can hold pictures of this size."""
    if height < 1 or width < 1 or height % 2 or width % 2:
        legal = f"{max(2, width // 2 * 2)}x{max(2, height // 2 * 2)} or {-(-width // 2) * 2}x{-(-height // 2) * 2}"
        raise OutputError(
            f"a video of {width}x{height} cannot be written: H.264 with 4:2:0 colour stores one colour "
            f"for every 2x2 pixels and needs even sizes; the nearest are {legal}"
        )


def estimated_bytes(num_frames: int, height: int, width: int) -> int:
    """Generous room on the disk for one mp4 while it is written (two copies, half a byte for each pixel)."""
    return 2**20 + num_frames * height * width


def check_writable(path: files.StrPath, num_frames: int = 1, height: int = 0, width: int = 0) -> None:
    """OutputError now if an mp4 of this size could not be written to ``path`` later."""
    files.check_writable(path, SUFFIXES, estimated_bytes(num_frames, height, width))


class VideoWriter:
    """An mp4 being written: ``with VideoWriter(path, fps, height, width) as writer: writer.write(frames)``.

    Encoding runs in a thread of its own behind a bounded queue, so that it overlaps whatever makes the frames.
    What goes wrong there is raised by the next ``write`` or at the end of the block. The file appears under its name
    at the end of the block, and only if the block was left without an exception; nothing else is left on the disk.

    Args:
        path: the file, ending in ``.mp4``; one that is there is replaced at the end.
        fps: frames per second, see ``as_fps``.
        height, width: of every frame, in pixels, both even.
        record: the settings record without its ``frames`` part, which the writer adds; ``None`` writes no record.
            May be set as an attribute until the end of the block.
        crf: constant rate factor of x264, 1 (best, largest) to 51.
        publish: makes the finished file appear under its name; ``Together.publish`` puts that off.
    Raises:
        OutputError: bad size, rate or name; not writable; disk full; no frames were written.
        MissingDependencyError: no PyAV, or one without x264.
    """

    def __init__(
        self,
        path: files.StrPath,
        fps: Fraction | float | str,
        height: int,
        width: int,
        *,
        record: Mapping[str, Any] | None = None,
        crf: int = DEFAULT_CRF,
        publish: files.Publish = files.publish,
    ) -> None:
        check_crf(crf)
        check_size(height, width)
        self.path = Path(path)
        self.fps = as_fps(fps)
        self.height, self.width = height, width
        self.record = record
        self.crf = crf
        self.num_frames = 0
        self._publish = publish
        self._digest = hashlib.sha256()
        self._target = files.resolve_target(path, SUFFIXES)
        self._queue: queue.Queue[npt.NDArray[np.uint8] | None] = queue.Queue(_QUEUE_CHUNKS)
        self._cancelled = threading.Event()
        self._av = _import_av_with_x264()

    @property
    def sha256(self) -> str:
        """Of the frames written so far, before encoding."""
        return self._digest.hexdigest()

    def __enter__(self) -> VideoWriter:
        self._temporary_context = files.temporary_beside(self._target)
        self._temporary = self._temporary_context.__enter__()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="glimt-encode")
        self._encoding = self._thread.submit(self._work)
        return self

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """Add ``frames``, ``[n, H, W, 3]`` uint8 RGB, which must not be changed afterwards. Blocks while far behind."""
        expected = (self.height, self.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected:
            raise OutputError(
                f"frames must be uint8 of shape [n, {self.height}, {self.width}, 3], "
                f"not {frames.dtype} of shape {list(frames.shape)}"
            )
        if len(frames) == 0:
            return
        frames = np.ascontiguousarray(frames)
        self._put(frames)
        self._digest.update(frames.data)
        self.num_frames += len(frames)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._stop()
            self._temporary_context.__exit__(None, None, None)

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise OutputError(f"cannot write {self.path}: no frames were written")
        self._put(None)
        wait([self._encoding])
        self._raise_failure()
        with files.temporary_beside(self._target) as final:
            try:
                _wrap(self._av, self._temporary, final, self.fps, self._comment())
            except (self._av.FFmpegError, OSError) as error:
                raise files.as_output_error(self.path, error) from error
            if not boxes.is_whole_and_fast(final):
                raise OutputError(f"cannot write {self.path}: the file came out damaged; is the disk full?")
            self._publish(final, self._target)

    def _comment(self) -> str | None:
        if self.record is None:
            return None
        frames = {
            "sha256": self.sha256,
            "count": self.num_frames,
            "height": self.height,
            "width": self.width,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
        }
        return encode_record({**self.record, "frames": frames})

    def _put(self, item: npt.NDArray[np.uint8] | None) -> None:
        while True:
            self._raise_failure()
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=_POLL_S)

    def _stop(self) -> None:
        """Wait until the thread is at its end, which it reaches within one picture."""
        self._cancelled.set()
        with contextlib.suppress(queue.Full):  # then it is busy, and looks at the flag before it takes another
            self._queue.put_nowait(None)
        self._thread.shutdown(wait=True)

    def _raise_failure(self) -> None:
        failure = self._encoding.exception() if self._encoding.done() else None
        if failure is None:
            return
        if isinstance(failure, GlimtError):
            raise failure
        if isinstance(failure, OSError):
            raise files.as_output_error(self.path, failure) from failure
        raise OutputError(f"cannot write {self.path}: encoding failed: {failure}") from failure

    def _work(self) -> None:
        """The thread: takes chunks until there are no more, or until it is told to stop."""
        with self._av.open(f"file:{self._temporary}", "w", format="mp4") as container:
            stream = _add_h264(container, self.fps, self.height, self.width, self.crf)
            convert = _ToYuv(self._av, self.fps)
            index = 0
            while (chunk := self._queue.get()) is not None:
                for picture in chunk:
                    if self._cancelled.is_set():
                        return
                    container.mux(stream.encode(convert(picture, index)))
                    index += 1
            if not self._cancelled.is_set():
                container.mux(stream.encode(None))


def _add_h264(container: Any, fps: Fraction, height: int, width: int, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "medium"})
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base = 1 / fps
    context.gop_size = max(1, round(2 * fps))  # a whole picture every two seconds, for seeking
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


class _ToYuv:
    """RGB pictures as the encoder wants them: BT.709, limited range, 4:2:0, picture i shown at ``i / fps``."""

    def __init__(self, av: Any, fps: Fraction) -> None:
        reformatter = av.video.reformatter
        self._av, self._time_base = av, 1 / fps
        self._reformatter = reformatter.VideoReformatter()
        self._target = {"format": "yuv420p", "dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
        method = reformatter.Interpolation
        if hasattr(method, "ACCURATE_RND"):  # PyAV 18; what rounds without it makes colours 0.3 levels darker
            self._target["interpolation"] = method.BILINEAR | method.ACCURATE_RND

    def __call__(self, picture: npt.NDArray[np.uint8], index: int) -> Any:
        given = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = self._reformatter.reformat(given, **self._target)
        frame.pts, frame.time_base = index, self._time_base
        return frame


def _wrap(av: Any, source: files.StrPath, target: files.StrPath, fps: Fraction, comment: str | None) -> None:
    """Copy the encoded pictures into the final file: only now is everything that its header says known."""
    ticks_per_s = fps.numerator * -(-10_000 // fps.numerator)
    options = {
        "movflags": "+faststart",
        "video_track_timescale": str(ticks_per_s),
        "movie_timescale": str(ticks_per_s),  # of the duration, which would be rounded to milliseconds otherwise
    }
    with (
        av.open(f"file:{os.fspath(source)}") as given,
        av.open(f"file:{os.fspath(target)}", "w", format="mp4", options=options) as made,
    ):
        if comment is not None:
            made.metadata["comment"] = comment
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def save_video(
    path: files.StrPath,
    frames: npt.NDArray[np.uint8],
    fps: Fraction | float | str,
    *,
    record: Mapping[str, Any] | None = None,
    crf: int = DEFAULT_CRF,
) -> None:
    """Write ``frames`` ``[F, H, W, 3]`` uint8 RGB as one mp4; see ``VideoWriter`` for the rest."""
    if frames.ndim != 4:
        raise OutputError(f"frames must have the shape [F, H, W, 3], not {list(frames.shape)}")
    height, width = frames.shape[1:3]
    with VideoWriter(path, fps, height, width, record=record, crf=crf) as writer:
        writer.write(frames)

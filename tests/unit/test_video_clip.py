"""Reading clips: every frame, its size and its colours; and what is said of files that cannot be read."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import clips
import numpy as np
import pytest
from PIL import Image
from real_clips import real_clip

from glimt.errors import RequestError
from glimt.video.clip import open_clip


def flat(num_frames: int, height: int, width: int) -> np.ndarray:
    """Each frame of one colour, each of another."""
    colours = np.random.default_rng(1).integers(20, 236, (num_frames, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (num_frames, height, width, 3)).copy()


@pytest.mark.parametrize(("name", "frames", "size", "fps"), [
    ("carphone_pristine", 120, (144, 176), Fraction(30000, 1001)),
    ("bikes", 250, (272, 640), Fraction(25)),
])  # fmt: skip
def test_real_clips_are_read_to_the_last_frame(name: str, frames: int, size: tuple[int, int], fps: Fraction) -> None:
    clip = open_clip(real_clip(name))
    assert (clip.frames, (clip.height, clip.width), clip.fps) == (frames, size, fps)
    seen = list(clip.read())
    assert len(seen) == frames
    assert {frame.shape for frame in seen} == {(1, *size, 3)} and {frame.dtype for frame in seen} == {np.dtype("u1")}
    assert np.std(seen[0]) > 20


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    frames = flat(7, 32, 48)
    clips.write(tmp_path / "a.mp4", frames, fps="24000/1001", crf=1)
    clip = open_clip(tmp_path / "a.mp4")
    assert (clip.frames, clip.height, clip.width, clip.fps) == (7, 32, 48, Fraction(24000, 1001))
    again = np.concatenate(list(clip.read()))
    assert np.abs(again.astype(int) - frames).max() <= 4  # BT.709, limited range and 4:2:0 round
    assert len(list(clip.read(3))) == 3


def test_frames_are_stretched_to_the_size_asked_for(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", flat(2, 32, 48), crf=1)
    clip = open_clip(tmp_path / "a.mp4")
    small, same = (next(clip.read(1, size)) for size in ((16, 24), (32, 48)))
    assert small.shape == (1, 16, 24, 3)
    assert np.abs(small.mean((1, 2)) - same.mean((1, 2))).max() <= 1


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    clip = open_clip(tmp_path / "a.png")
    assert (clip.frames, clip.fps) == (1, None)
    assert np.array_equal(np.concatenate(list(clip.read())), picture[None])


def test_files_that_are_no_clips_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for name, said in (("none.mp4", "no such file"), ("text.mp4", "not a video or picture")):
        with pytest.raises(RequestError, match=said):
            open_clip(tmp_path / name)


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", clips.noise(12, 64, 64), crf=1)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RequestError, match=r"cut\.mp4"):
        clip = open_clip(tmp_path / "cut.mp4")
        assert len(list(islice(clip.read(12), 12))) == 12

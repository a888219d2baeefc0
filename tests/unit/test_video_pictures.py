"""Contact sheets and animations show the right moments, for the right time, or are refused with the reason."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from glimt.errors import OutputError
from glimt.video.animation import check_animation, frame_ticks, save_animation
from glimt.video.sheet import contact_sheet, moments, save_sheet


def numbered(num_frames: int, height: int = 12, width: int = 20) -> np.ndarray:
    """Frame i is the flat grey 7 i."""
    return np.stack([np.full((height, width, 3), 7 * i, np.uint8) for i in range(num_frames)])


@given(num_frames=st.integers(1, 300), count=st.integers(1, 40))
def test_moments_run_from_the_first_to_the_last_without_repetition(num_frames, count):
    times = moments(num_frames, count)
    assert len(times) == min(num_frames, count)
    assert times == sorted(set(times))
    assert times[0] == 0
    if count > 1:
        assert times[-1] == num_frames - 1


def test_a_sheet_shows_the_moments_in_reading_order_pixel_for_pixel():
    sheet = np.asarray(contact_sheet(numbered(33), columns=3, rows_per_clip=2, gap_px=2, scale=2))
    assert sheet.shape == (2 + 2 * (24 + 2), 2 + 3 * (40 + 2), 3)
    shown = [sheet[2 + 26 * row, 2 + 42 * column, 0] for row in range(2) for column in range(3)]
    assert shown == [7 * i for i in moments(33, 6)]
    assert (sheet[:2] == 255).all()


def test_labels_stand_above_their_clips_and_are_cut_to_fit():
    plain = contact_sheet([numbered(4), numbered(4)], columns=4)
    labelled = contact_sheet([numbered(4), numbered(4)], columns=4, labels=["a red ball", "long " * 100])
    assert labelled.width == plain.width
    assert labelled.height > plain.height
    assert (np.asarray(labelled)[4:16] < 128).any()


def test_short_clips_and_narrow_pictures_still_make_a_sheet():
    assert contact_sheet(numbered(1, 2, 2), columns=8, labels=["wide"]).width == 2 + 8


@pytest.mark.parametrize(
    ("clips", "options", "words"),
    [
        ([], {}, "no clips"),
        ([numbered(2), numbered(2, 14)], {}, "several sizes"),
        ([numbered(2)], {"labels": ["a", "b"]}, "2 labels"),
        ([numbered(2).astype(np.float32)], {}, "float32"),
        ([numbered(2)], {"columns": 0}, "at least 1"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused(clips, options, words):
    with pytest.raises(OutputError, match=words):
        contact_sheet(clips, **options)


def test_a_sheet_is_written_whole(tmp_path):
    sheet = contact_sheet(numbered(9))
    save_sheet(tmp_path / "s.png", sheet)
    assert [file.name for file in tmp_path.iterdir()] == ["s.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "s.png")), np.asarray(sheet))
    with pytest.raises(OutputError, match=r"\.png"):
        save_sheet(tmp_path / "s.jpg", sheet)


@given(num_frames=st.integers(1, 500), fps=st.fractions(1, 100), ticks=st.sampled_from([100, 1000]))
def test_no_frame_begins_more_than_half_a_tick_from_its_time(num_frames, fps, ticks):
    durations = frame_ticks(num_frames, fps, ticks)
    for i in range(num_frames + 1):
        assert abs(sum(durations[:i]) - i * ticks / fps) <= Fraction(1, 2)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
@pytest.mark.parametrize("fps", [16, 24, Fraction(24000, 1001)])
def test_animations_keep_count_order_duration_and_colour(tmp_path, suffix, fps):
    path = tmp_path / f"a{suffix}"
    save_animation(path, numbered(17), fps, quality=100)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    durations, greys = [], []
    with Image.open(path) as image:
        assert image.info.get("loop") == 0
        for frame in ImageSequence.Iterator(image):
            greys.append(int(np.asarray(frame.convert("RGB"))[5, 5, 0]))
            durations.append(frame.info["duration"])
    assert len(greys) == 17
    assert np.abs(np.array(greys) - 7 * np.arange(17)).max() <= 3
    assert sum(durations) == pytest.approx(1000 * 17 / fps, abs=5)


def test_animations_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(OutputError, match="50 frames per second"):
        check_animation(tmp_path / "a.gif", 60)
    check_animation(tmp_path / "a.webp", 60)
    with pytest.raises(OutputError, match=r"\.webp or \.gif"):
        check_animation(tmp_path / "a.apng", 24)
    with pytest.raises(OutputError, match="not uint8"):
        save_animation(tmp_path / "a.gif", numbered(3)[0], 24)
    assert [file.name for file in tmp_path.iterdir()] == []

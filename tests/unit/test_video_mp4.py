"""An mp4 holds exactly the frames, times, colours and settings that went in, or does not exist."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import RECORD, noise, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.errors import MissingDependencyError, OutputError
from glimt.video import boxes, mp4
from glimt.video.mp4 import VideoWriter, as_fps
from glimt.video.record import read_record

BUG = RuntimeError("a bug in the encoder")


def flat(rgb: tuple[int, int, int], num_frames: int = 3, size: int = 32) -> np.ndarray:
    return np.full((num_frames, size, size, 3), rgb, np.uint8)


rates = st.one_of(
    st.integers(1, 120),
    st.sampled_from([Fraction(24000, 1001), Fraction(30000, 1001), "24000/1001", 23.976, 12.5, 29.97, "1/2"]),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_frames=st.integers(1, 26),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    fps=rates,
    chunk=st.integers(1, 9),
)
def test_count_rate_size_and_every_time_are_exact(tmp_path, num_frames, height, width, fps, chunk):
    path = tmp_path / "a.mp4"
    write(path, noise(num_frames, 2 * height, 2 * width), fps, chunk)
    rate = as_fps(fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.frames == num_frames
        assert stream.average_rate == rate
        assert stream.duration * stream.time_base == num_frames / rate
        frames = list(container.decode(video=0))
    assert [frame.pts * frame.time_base for frame in frames] == [i / rate for i in range(num_frames)]
    assert {(frame.height, frame.width) for frame in frames} == {(2 * height, 2 * width)}


def test_the_index_stands_before_the_data_and_the_colours_are_tagged(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, noise(9, 48, 64))
    kinds = [box.kind for box in boxes.top_level_boxes(path)]
    assert kinds[0] == "ftyp"
    assert kinds.index("moov") < kinds.index("mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)


def bt709_to_rgb(planes: np.ndarray, size: int) -> np.ndarray:
    """The mean colour of a flat yuv420p picture by the closed form of BT.709: no library's idea of it."""
    quarter = size // 4
    luma, blue, red = planes[:size], planes[size : size + quarter], planes[size + quarter :]
    y, u, v = (luma.mean() - 16) / 219, (blue.mean() - 128) / 224, (red.mean() - 128) / 224
    r, b = y + 2 * (1 - 0.2126) * v, y + 2 * (1 - 0.0722) * u
    return 255 * np.array([r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rgb=st.tuples(*[st.integers(0, 255)] * 3))
def test_flat_colours_come_back_within_three_levels(tmp_path, rgb):
    path = tmp_path / "a.mp4"
    write(path, flat(rgb))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert np.abs(bt709_to_rgb(frames[-1].to_ndarray().astype(float), 32) - rgb).max() <= 3
    assert np.abs(frames[-1].to_ndarray(format="rgb24").astype(int) - rgb).max() <= 3  # and as a player would show it


def test_pictures_come_back_in_order_and_alike(tmp_path):
    ramp = np.stack([np.full((32, 32, 3), 8 * i, np.uint8) for i in range(31)])
    write(tmp_path / "a.mp4", ramp, chunk=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(back.astype(int) - ramp).max() <= 4


def test_a_smaller_crf_is_nearer_and_larger(tmp_path):
    frames = noise(5, 64, 64)
    sizes, errors = [], []
    for crf in (1, 40):
        write(tmp_path / "a.mp4", frames, crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        with av.open(str(tmp_path / "a.mp4")) as container:
            back = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])
        errors.append(np.abs(back.astype(float) - frames.astype(float) @ [0.2126, 0.7152, 0.0722]).mean())
    assert sizes[0] > 2 * sizes[1]
    assert errors[0] < errors[1]


def test_the_same_frames_give_the_same_file(tmp_path):
    write(tmp_path / "a.mp4", noise(9, 32, 32), record=RECORD)
    write(tmp_path / "b.mp4", noise(9, 32, 32), chunk=2, record=RECORD)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


# --- refusals, before anything is written ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 97}, "96x98"),
        ({"width": 33}, "32x96"),
        ({"height": 0}, "even"),
        ({"fps": 0}, "out of range"),
        ({"fps": -3}, "out of range"),
        ({"fps": float("nan")}, "not a number"),
        ({"fps": 1001}, "out of range"),
        ({"fps": 1e-6}, "out of range, which is 0.01"),
        ({"fps": "fast"}, "not a number"),
        ({"fps": "1/0"}, "not a number"),
        ({"crf": 0}, "crf: 0"),
        ({"crf": 52}, "crf: 52"),
        ({"path": "a.avi"}, ".mp4"),
        ({"path": "a"}, ".mp4"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path, options, words):
    path = tmp_path / str(options.pop("path", "a.mp4"))
    arguments = {"fps": 24, "height": 96, "width": 96, **options}
    with pytest.raises(OutputError, match=words):
        VideoWriter(path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (24, 24),
        (23.976, Fraction(2997, 125)),
        (24000 / 1001, Fraction(24000, 1001)),
        (0.1, Fraction(1, 10)),
        (0.01, Fraction(1, 100)),
    ],
)
def test_floats_mean_the_ratio_they_stand_for(value, expected):
    assert as_fps(value) == expected


def test_frames_of_another_shape_or_type_are_refused_and_leave_nothing(tmp_path):
    for wrong in (noise(1, 16, 18), noise(1, 16, 16).astype(np.float32), noise(1, 16, 16)[0]):
        with pytest.raises(OutputError, match="frames must be uint8"), VideoWriter(tmp_path / "a.mp4", 24, 16, 16) as w:
            w.write(wrong)
        assert list(tmp_path.iterdir()) == []


def test_no_frames_are_an_error(tmp_path):
    with pytest.raises(OutputError, match="no frames"), VideoWriter(tmp_path / "a.mp4", 24, 16, 16):
        pass
    assert list(tmp_path.iterdir()) == []


def test_check_writable_sees_the_trouble_coming(tmp_path):
    mp4.check_writable(tmp_path / "a.mp4", 33, 96, 96)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="does not exist"):
        mp4.check_writable(tmp_path / "no" / "a.mp4")
    with pytest.raises(OutputError, match=r"end in \.mp4"):
        mp4.check_writable(tmp_path / "a.mov")
    with pytest.raises(OutputError, match="MiB are free"):
        mp4.check_writable(tmp_path / "a.mp4", 10**9, 10**4, 10**4)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="folder"):
        mp4.check_writable(tmp_path / "folder.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/null")
    with pytest.raises(OutputError, match="regular file"):
        mp4.check_writable(tmp_path / "device.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="does not exist"):
        mp4.check_writable(tmp_path / "file" / "a.mp4")


def test_check_writable_tries_to_create_a_file(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="cannot write"):
        mp4.check_writable("/proc/a.mp4")  # even root may not

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="permission denied"):
        mp4.check_writable(tmp_path / "a.mp4")


# --- nothing is left behind, nothing is destroyed ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, GeneratorExit, SystemExit])
def test_leaving_by_an_exception_keeps_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(error), VideoWriter(path, 24, 64, 64) as writer:
        for _ in range(20):
            writer.write(noise(4, 64, 64))
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"
    assert not any(thread.name.startswith("glimt-encode") for thread in threading.enumerate())


def test_a_link_is_followed_and_permissions_are_those_of_a_normal_file(tmp_path):
    (tmp_path / "real.mp4").write_bytes(b"old")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    (tmp_path / "normal").write_bytes(b"")
    write(tmp_path / "link.mp4", noise(1, 16, 16))
    assert (tmp_path / "link.mp4").is_symlink()
    assert boxes.is_whole_and_fast(tmp_path / "real.mp4")
    assert (tmp_path / "real.mp4").stat().st_mode == (tmp_path / "normal").stat().st_mode


def test_a_finished_clip_is_written_in_one_call(tmp_path):
    frames = noise(5, 16, 24)
    write(tmp_path / "a.mp4", frames, 12, record=RECORD)
    mp4.save_video(tmp_path / "b.mp4", frames, 12, record=RECORD)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(OutputError, match="shape"):
        mp4.save_video(tmp_path / "b.mp4", frames[0], 12)


def test_odd_names_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "http:x.mp4", "-x.mp4", "%03d.mp4", "snö ☃.MP4", "x" * 250 + ".mp4"):
        write(Path(name), noise(1, 16, 16), record=RECORD)
        assert read_record(name)["request"] == RECORD["request"]
        (tmp_path / name).unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "expected", "words"),
    [
        (OSError(28, "No space left on device"), OutputError, "no space is left"),
        (BUG, OutputError, "a bug in the encoder"),
    ],
)
def test_what_fails_in_the_thread_is_raised_in_the_caller(tmp_path, monkeypatch, failure, expected, words):
    def fail(*_):
        raise failure

    monkeypatch.setattr(mp4._ToYuv, "__call__", fail)
    with pytest.raises(expected, match=words) as caught, VideoWriter(tmp_path / "a.mp4", 24, 16, 16) as writer:
        for _ in range(1000):
            writer.write(noise(1, 16, 16))
    assert caught.value.__cause__ is failure
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_far_behind_holds_its_caller_back(tmp_path, monkeypatch):
    convert, gate = mp4._ToYuv.__call__, threading.Event()
    monkeypatch.setattr(mp4._ToYuv, "__call__", lambda *arguments: gate.wait(5) and convert(*arguments))
    with VideoWriter(tmp_path / "a.mp4", 24, 16, 16) as writer:
        threading.Timer(0.2, gate.set).start()
        start = time.perf_counter()
        for _ in range(mp4._QUEUE_CHUNKS + 2):
            writer.write(noise(1, 16, 16))
        assert time.perf_counter() - start > 0.1
    assert writer.num_frames == mp4._QUEUE_CHUNKS + 2


@pytest.mark.parametrize("limit_bytes", [4_000, 60_000])
def test_a_disk_that_fills_up_is_one_clear_error_and_leaves_nothing(tmp_path, limit_bytes):
    """The limit on file size of a child process stands for the disk; it strikes while encoding or while wrapping."""
    program = f"""
        import resource, numpy as np
        from glimt.errors import OutputError
        from glimt.video.mp4 import VideoWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
        frames = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
        try:
            with VideoWriter("a.mp4", 24, 64, 64) as writer:
                for _ in range(4):
                    writer.write(frames)
        except OutputError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "cannot write a.mp4" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_the_error_carries_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        VideoWriter(tmp_path / "a.mp4", 24, 16, 16)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 0.999))
def test_a_cut_file_is_never_taken_for_a_whole_one(tmp_path, cut):
    whole = tmp_path / "a.mp4"
    if not whole.exists():
        write(whole, noise(5, 32, 32))
    data = whole.read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: int(cut * len(data))])
    assert boxes.is_whole_and_fast(whole)
    assert not boxes.is_whole_and_fast(tmp_path / "b.mp4")

"""The settings record of an mp4: what went in comes back, and nothing else is taken for one."""

from __future__ import annotations

import hashlib

import av
import pytest
from clips import RECORD, noise, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.errors import OutputError
from glimt.video.mp4 import VideoWriter
from glimt.video.record import encode_record, parse_record, read_record

FRAMES = {"sha256": "0" * 64, "count": 1, "height": 2, "width": 2}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.dictionaries(st.text(), json_values, max_size=4), prompt=st.text())
def test_the_record_comes_back_from_the_file(tmp_path, request, prompt):
    frames = noise(5, 16, 24)
    given_record = {**RECORD, "request": {**request, "prompt": prompt}}
    writer = write(tmp_path / "a.mp4", frames, "24000/1001", record=given_record)
    found = read_record(tmp_path / "a.mp4")
    assert {key: found[key] for key in RECORD} == given_record
    sha256 = hashlib.sha256(frames.tobytes()).hexdigest()
    assert writer.sha256 == sha256
    facts = {"sha256": sha256, "count": 5, "height": 16, "width": 24, "fps": "24000/1001"}
    assert found["frames"] == facts


def test_a_record_set_while_writing_is_the_one_in_the_file(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 24, 16, 16) as writer:
        writer.write(noise(1, 16, 16))
        writer.record = RECORD
    assert read_record(tmp_path / "a.mp4")["request"] == RECORD["request"]


def test_a_long_record_survives_and_so_does_a_rewrap_without_encoding(tmp_path):
    record = {**RECORD, "request": {"prompt": "\u2603 '\"\\\n" * 50_000}}
    write(tmp_path / "a.mp4", noise(3, 16, 16), record=record)
    with av.open(str(tmp_path / "a.mp4")) as given, av.open(str(tmp_path / "b.mkv"), "w") as made:
        made.metadata.update(given.metadata)
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    assert read_record(tmp_path / "a.mp4") == read_record(tmp_path / "b.mkv")


def test_files_without_a_record_say_what_they_are(tmp_path):
    write(tmp_path / "none.mp4", noise(1, 16, 16))
    with pytest.raises(OutputError, match="no settings record"):
        read_record(tmp_path / "none.mp4")
    with pytest.raises(OutputError, match="no such file"):
        read_record(tmp_path / "missing.mp4")
    with pytest.raises(OutputError, match="not a file"):
        read_record(tmp_path)
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    with pytest.raises(OutputError, match="not a video file"):
        read_record(tmp_path / "text.mp4")


@settings(max_examples=200, deadline=None)
@given(text=st.text() | json_values.map(str))
def test_any_other_comment_is_refused(text):
    with pytest.raises(OutputError, match=r"x\.mp4"):
        parse_record(text, "x.mp4")


def test_every_fault_of_a_record_is_named():
    with pytest.raises(OutputError) as caught:
        parse_record('{"format": "glimt-record/1", "model": 3, "request": {}, "versions": {}}', "x.mp4")
    assert all(name in str(caught.value) for name in ("model", "implementations", "frames"))
    with pytest.raises(OutputError) as caught:
        encode_record({**RECORD, "frames": {"sha256": "no", "count": 0, "height": 2, "width": True}})
    assert all(name in str(caught.value) for name in ("sha256", "count", "width"))
    lost = {**RECORD, "model": {"digest": "", "revision": 3, "base": {"base": {}}}, "frames": FRAMES}
    with pytest.raises(OutputError) as caught:
        encode_record(lost)
    assert all(name in str(caught.value) for name in ("'model.source'", "'model.revision'", "'model.base.source'"))
    with pytest.raises(OutputError, match="glimt-record/9"):
        parse_record('{"format": "glimt-record/9"}', "x.mp4")

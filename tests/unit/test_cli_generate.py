"""``glimt generate`` and ``glimt reproduce``, on an engine that paints: files, records, every way to stop."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import fake_engine
import numpy as np
import pytest
from PIL import Image

from glimt.cli import main
from glimt.request import GenerateRequest
from glimt.video.record import read_record


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return fake_engine.install(monkeypatch)


@pytest.fixture
def glimt(engine, capsys):
    """Runs a command line; gives its exit code and both streams."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def names(folder: str = ".") -> list[str]:
    return sorted(os.listdir(folder))


def painted(**fields: object) -> np.ndarray:
    return fake_engine.paint(GenerateRequest(**{"prompt": "a ball", **fields}).resolve(fake_engine.Card()))


def test_a_prompt_becomes_an_mp4_with_its_record(glimt):
    code, out, err = glimt("generate", "a ball", "-o", "a.mp4", "--seed", "7", "--fps", "24000/1001", "--frames", "13")
    assert code == 0
    assert names() == ["a.mp4"]
    assert "a.mp4: 13 frames of 48x32" in out
    assert "seed 7" in out
    assert all(f"{stage}: done in" in err for stage in ("load", "text", "denoise", "decode"))
    record = read_record("a.mp4")
    assert record["request"]["seed"] == 7
    assert record["frames"]["fps"] == "24000/1001"
    assert record["frames"]["sha256"] == hashlib.sha256(painted(seed=7, num_frames=13).tobytes()).hexdigest()
    with av.open("a.mp4") as container:
        assert container.streams.video[0].frames == 13


def test_json_is_one_object_whatever_libraries_print(glimt):
    code, out, err = glimt("generate", "a ball", "-o", "a.mp4", "--json")
    result = json.loads(out)
    (video,) = result["videos"]
    assert code == 0
    assert (video["path"], video["frames"], video["width"], video["height"], video["seed"]) == ("a.mp4", 9, 48, 32, 0)
    assert video["bytes"] == Path("a.mp4").stat().st_size
    assert result["report"]["implementations"] == {"paint": "reference"}
    assert "nobody asked for" in err


def test_quiet_says_nothing_on_the_way(glimt):
    assert "denoise" not in glimt("generate", "a ball", "-o", "a.mp4", "-q")[2]


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_cut_prompts_negatives_without_effect_and_fallbacks_are_always_told(glimt, engine, quiet):
    engine.fallbacks = ("norm: native cannot run here",)
    err = glimt("generate", "a ball " * 30, "-o", "a.mp4", "--guidance", "1", "--negative", "blue", *quiet)[2]
    assert err.count("note: the prompt is cut") == 1
    assert "note: negative_prompt has no effect" in err
    assert "fallback: norm: native cannot run here" in err
    assert "fallback: norm" in glimt("reproduce", "a.mp4", *quiet)[2]


def test_variants_go_to_files_named_by_their_seeds(glimt):
    words = ["--variants", "3", "--seed", "5", "--webp", "w.webp", "--gif", "g.gif", "--sheet", "s.png"]
    code, out, _ = glimt("generate", "a ball", "-o", "a.mp4", *words)
    assert code == 0
    assert names() == sorted(
        [f"{n}-{seed}.{e}" for n, e in (("a", "mp4"), ("w", "webp"), ("g", "gif")) for seed in (5, 6, 7)] + ["s.png"]
    )
    for seed in (5, 6, 7):
        record = read_record(f"a-{seed}.mp4")
        assert record["frames"]["sha256"] == hashlib.sha256(painted(seed=seed).tobytes()).hexdigest()
        assert (record["request"]["seed"], record["request"]["num_videos_per_prompt"]) == (seed, 1)
        assert f"a-{seed}.mp4" in out


def test_the_sheet_shows_the_frames(glimt):
    glimt("generate", "a ball", "-o", "a.mp4", "--sheet", "s.png")
    sheet = np.asarray(Image.open("s.png"))
    first = painted()[0]
    rows = range(sheet.shape[0] - 32)
    assert any(np.array_equal(sheet[row : row + 32, 4:52], first) for row in rows)


def test_previews_are_strips_of_stills(glimt):
    code, out, _ = glimt("generate", "a ball", "-o", "a.mp4", "--preview-dir", "p", "--preview-every", "2", "--json")
    assert code == 0
    assert names("p") == ["preview-seed0-step002.png", "preview-seed0-step004.png"]
    assert json.loads(out)["previews"] == [f"p/{name}" for name in names("p")]
    assert Image.open("p/preview-seed0-step002.png").width > 3 * 48


def test_previews_come_about_ten_times_unless_told(glimt):
    glimt("generate", "a ball", "-o", "a.mp4", "--preview-dir", "p", "--steps", "40")
    assert len(names("p")) == 10


def test_a_request_the_model_cannot_meet_is_told_in_the_options_words(glimt):
    code, out, err = glimt(
        "generate", " ", "-o", "a.mp4", "--frames", "10", "--size", "50x32", "--steps", "0", "--json"
    )
    problems = json.loads(out)["error"]["problems"]
    assert code == 2
    assert len(problems) == 4
    assert any(problem.startswith("--frames: 10") and "9 or 13" in problem for problem in problems)
    assert "--steps" in err
    assert names() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variants", "0"], "--variants"),
        (["--variants", "5000"], "--variants"),
        (["--model", "glimt-wrld"], "glimt-wrld"),
        (["--webp", "no/w.webp"], "no/w.webp"),
        (["--gif", "g.gif", "--fps", "60"], "50 frames per second"),
        (["--preview-dir", "no/p"], "--preview-dir"),
        (["--preview-every", "2"], "--preview-dir"),
        (["--preview", "linear"], "--preview: has no effect without --preview-dir"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(glimt, words, said):
    code, _, err = glimt("generate", "a ball", "-o", "a.mp4", *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert names() == []


def test_problems_of_settings_request_and_files_are_told_together(glimt, engine):
    words = ["--size", "50x32", "--fps", "0.000001", "--device", "cupid", "--crf", "0", "--variants", "5000"]
    code, out, _ = glimt("generate", " ", "-o", "no/a.mp4", *words, "--json")
    problems = json.loads(out)["error"]["problems"]
    assert code == 2
    for name in ("--device:", "--crf:", "no/a", "--size (width):", "--fps:", "--variants:", "prompt:"):
        assert any(name in problem for problem in problems), name
    assert engine.trace == []


def test_without_a_model_the_rules_of_all_models_are_told_beside_it(glimt, tmp_path):
    words = ["--size", "-96x96", "--frames", "0", "--fps", "0", "--solver", "eular", "--image", "no.png"]
    code, out, _ = glimt("generate", " ", "-o", "a.mp4", "--model", "glimt-wrld", *words, "--json")
    told = "\n".join(json.loads(out)["error"]["problems"])
    assert code == 2
    names = (
        "'glimt-wrld'",
        "prompt:",
        "--size (width): -96",
        "--frames: 0",
        "--fps: 0",
        "did you mean 'euler'",
        "no.png",
    )
    assert all(name in told for name in names)
    assert len(json.loads(out)["error"]["problems"]) == len(names)
    code, out, _ = glimt("generate", "", "-o", "a.mp4", "--model", "glimt-wrld", "--json")
    assert len(json.loads(out)["error"]["problems"]) == 2  # what is left to the model is none


def test_a_size_with_a_minus_sign_gets_the_nearest_one(glimt):
    assert "--size (width): -96" in glimt("generate", "a ball", "-o", "a.mp4", "--size", "-96x96")[2]
    assert "nearest: 16" in glimt("generate", "a ball", "-o", "a.mp4", "--size", "-96x96")[2]


def test_nothing_is_downloaded_for_a_request_that_is_refused(glimt, monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a model on the Hub was opened")

    monkeypatch.setattr(fake_engine.Engine, "open", opened)
    monkeypatch.setenv("HF_HUB_CACHE", "empty")
    code, out, _ = glimt("generate", "a ball", "-o", "no/a.mp4", "--model", "Wan-AI/any", "--json")
    assert code == 2
    assert len(json.loads(out)["error"]["problems"]) == 1
    code, out, _ = glimt("plan", "", "--model", "Wan-AI/any", "--steps", "0", "--json")
    assert (code, len(json.loads(out)["error"]["problems"])) == (2, 2)


def test_the_model_is_digested_before_the_work(glimt, engine):
    assert "digest: done" in glimt("generate", "a ball", "-o", "a.mp4")[2]
    assert engine.trace == ["load glimt-world", "provenance", "closed"]


def test_nothing_is_loaded_ahead_for_a_run_that_would_let_go_of_it(glimt, engine):
    engine.staged = True
    assert glimt("generate", "a ball", "-o", "a.mp4")[0] == 0
    assert engine.trace == ["provenance", "closed"]


def test_where_it_cannot_be_written_is_known_before_the_model_is_loaded(glimt, engine):
    assert glimt("generate", "a ball", "-o", "no/a.mp4")[0] == 2
    assert engine.trace == []


def test_a_size_the_disk_has_no_room_for_is_refused_before_the_work(glimt, engine):
    code, _, err = glimt("generate", "a ball", "-o", "a.mp4", "--size", "160000x160000", "--frames", "20001")
    assert code == 2
    assert "MiB are free" in err
    assert "closed" not in engine.trace


def test_a_fault_in_the_middle_closes_the_stream_and_keeps_the_old_file(glimt, engine):
    Path("a.mp4").write_bytes(b"old")
    engine.fails_at_step = 2
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(RuntimeError, match="on purpose"):
        main(["generate", "a ball", "-o", "a.mp4", "--json"])
    assert "fault in glimt" in json.loads(out.getvalue())["error"]["problems"][0]
    assert Path("a.mp4").read_bytes() == b"old"
    assert names() == ["a.mp4"]
    assert engine.trace[-1] == "closed"


@pytest.mark.parametrize("words", [["--sheet", "s.png"], ["--webp", "w.webp"], ["--gif", "g.gif"]])
def test_a_picture_that_cannot_be_written_leaves_none_of_the_runs_files(glimt, monkeypatch, words):
    """The disk fills up with the last picture, when videos and previews are written."""
    Path("a-5.mp4").write_bytes(b"old")
    save = Image.Image.save

    def full(picture: Image.Image, path: Path, **options: object) -> None:
        if not path.name.startswith(".preview"):
            raise OSError(28, "No space left on device")
        save(picture, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    run = ["generate", "a ball", "-o", "a.mp4", "--seed", "5", "--variants", "2", "--preview-dir", "p"]
    code, _, err = glimt(*run, *words)
    assert code == 2
    assert f"cannot write {words[1][0]}" in err and "no space is left" in err
    assert names() == ["a-5.mp4"]
    assert Path("a-5.mp4").read_bytes() == b"old"


def child(folder: Path, *words: str, step_s: float = 0.0, prelude: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, on the painting engine."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_engine; fake_engine.pretend(); fake_engine.behaviour.step_s = {step_s}
{prelude}
from glimt.cli import main
sys.exit(main({list(words)!r}))
"""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, **streams)


def test_an_interruption_that_a_library_swallows_still_stops_within_a_step(tmp_path):
    prelude = """
import contextlib, os, signal
preload = fake_engine.Engine.preload
def swallowing(engine):
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)
    preload(engine)
fake_engine.Engine.preload = swallowing
"""
    process = child(tmp_path, "generate", "a ball", "-o", "a.mp4", prelude=prelude)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "denoise" not in err
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_stops_within_a_step_and_keeps_only_finished_videos(tmp_path, number, code):
    (tmp_path / "a-0.mp4").write_bytes(b"old")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "other.png").write_bytes(b"another's")
    words = ["generate", "a ball", "-o", "a.mp4", "--variants", "3", "--steps", "4", "--preview-dir", "p", "--json"]
    process = child(tmp_path, *words, step_s=0.2)
    while not (tmp_path / "p" / "preview-seed1-step001.png").exists():  # so the first video is finished
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    start = time.perf_counter()
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.perf_counter() - start < 1.5
    assert names(tmp_path) == ["a-0.mp4", "p"]
    assert read_record(tmp_path / "a-0.mp4")["request"]["prompt"] == "a ball"
    assert names(tmp_path / "p") == ["other.png"]
    assert "Traceback" not in err
    assert json.loads(out)["error"]["kind"] == "Interrupted"


def test_a_disk_that_fills_up_is_one_error_and_code_2(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    process = child(tmp_path, "generate", "a ball", "-o", "a.mp4", "--size", "160x160", "--frames", "41", prelude=limit)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "cannot write a.mp4" in err
    assert "Traceback" not in err
    assert names(tmp_path) == []


def test_a_terminal_gets_bars_and_a_pipe_gets_lines(tmp_path):
    master, slave = os.openpty()
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_engine; fake_engine.pretend()
from glimt.cli import main
sys.exit(main(["generate", "a ball", "-o", "a.mp4"]))
"""
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"denoise" in shown
    assert b"\x1b[" in shown
    assert b"\x1b[" not in out


# --- reproduce ---


@pytest.fixture
def made(glimt):
    words = ["--model", "fake", "--seed", "7", "--variants", "2"]
    assert glimt("generate", "a ball", "-o", "a.mp4", *words)[0] == 0
    return ["a-7.mp4", "a-8.mp4"]


def test_the_frames_of_every_variant_come_out_the_same(glimt, made):
    for name in made:
        code, out, _ = glimt("reproduce", name, "--model", "fake")
        assert code == 0
        assert out.startswith(f"identical: all 9 frames are those of {name}")
    assert names() == made


def test_other_frames_are_an_exit_code_and_a_list_of_what_changed(glimt, engine, made):
    engine.salt, engine.versions = "changed", {"glimt": "1"}
    code, out, _ = glimt("reproduce", made[0])
    assert code == 1
    assert "different" in out
    assert "versions: glimt was 0, is 1" in out
    code, out, _ = glimt("reproduce", made[0], "--json")
    assert json.loads(out)["identical"] is False


def test_the_record_names_what_ran_and_reproducing_compares_what_runs(glimt, engine, tmp_path):
    """Not what either plan names, which is another implementation."""
    engine.painted_by = "by hand"
    assert glimt("generate", "a ball", "-o", "a.mp4", "--model", "fake")[0] == 0
    assert read_record("a.mp4")["implementations"] == {"paint": "by hand"}
    assert json.loads(glimt("reproduce", "a.mp4", "--json")[1])["differences"] == []
    engine.painted_by, engine.salt = "reference", "changed"
    code, out, _ = glimt("reproduce", "a.mp4")
    assert code == 1 and "implementations: paint was by hand, is reference" in out


def test_another_model_is_named_and_not_run_unless_told(glimt, engine, made):
    engine.digest = "e" * 64
    engine.trace.clear()
    code, out, _ = glimt("reproduce", made[0], "--json")
    assert code == 1
    assert "closed" not in engine.trace
    result = json.loads(out)
    assert result["made"] is None
    assert "eeeeeeeeeeee" in result["differences"][0]
    assert "dddddddddddd" in result["differences"][0]
    assert "not reproduced" in glimt("reproduce", made[0])[1]
    assert glimt("reproduce", made[0], "--anyway")[0] == 0


def test_a_video_without_a_record_and_a_model_that_has_gone_are_explained(glimt, engine, made):
    assert "no such file" in glimt("reproduce", "b.mp4")[2]
    Path("b.mp4").write_bytes(b"nonsense")
    code, _, err = glimt("reproduce", "b.mp4")
    assert code == 2
    assert "not a video" in err
    engine.name = "moved away"
    code, _, err = glimt("reproduce", made[0])
    assert code == 2
    assert "no model 'fake'" in err and "say where with --model" in err

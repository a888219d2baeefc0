"""Benchmarks: statistics, alternation, workers, the refusal of numbers where frames differ. No engine is timed here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import bought, cpu, environment, rounds
from benchmarks.harness import BenchmarkError, Series, Worker, order, ratio, series
from benchmarks.requests import Request, prompts, requests
from benchmarks.stopwatch import Span, Stopwatch
from benchmarks.table import Row, markdown

PROVIDER = '''
import sys
import time

import numpy as np


class Steady:
    """Draws noise of the request's seed, and takes a while."""

    pause_s, offset = 0.001, 0

    def load(self, model, threads):
        print("libraries print when they load")
        self.model = model

    def run(self, request, watch):
        with watch.span("text"):
            time.sleep(self.pause_s)
        with watch.span("denoise"):
            rng = np.random.default_rng(request.seed)
            frames = rng.integers(0, 200, (request.num_frames, request.height, request.width, 3), np.uint8)
        with watch.span("decode"):
            return frames + np.uint8(self.offset)

    def about(self):
        return {"model": self.model}


class Slow(Steady):
    pause_s = 0.05


class Floats(Steady):
    def run(self, request, watch):
        return super().run(request, watch) / np.float32(255)


class Different(Steady):
    offset = 9


class Broken(Steady):
    def run(self, request, watch):
        raise RuntimeError("out of ideas")
'''


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``module:Class`` of a provider above, by class name, for workers."""
    (tmp_path / "bench_fake.py").write_text(PROVIDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name: f"bench_fake:{name}"


def asked(count: int) -> list[Request]:
    return requests(count, height=8, width=8, num_frames=5, num_inference_steps=1, guidance_scale=1.0)


def run(provider: Any, ours: str, other: str, count: int = 2) -> tuple[dict[str, rounds.Measured], list[float]]:
    found = {"ours": provider(ours), "other": provider(other)}
    return rounds.run_rounds(found, "nowhere", 1, asked(2 * count + 1), lambda line: None)


def test_a_series_tells_median_and_range() -> None:
    values = Series((3.0, 1.0, 2.0, 10.0))
    assert (values.median, values.low, values.high) == (2.5, 1.0, 10.0)
    assert values.to_dict()["values"] == [3.0, 1.0, 2.0, 10.0]


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    found = ratio(Series((1.0, 2.0, 4.0)), Series((3.0, 4.0, 20.0)))
    assert (found.median, found.low, found.high) == (2.0, 2.0, 5.0)


def test_ratios_need_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio(Series((1.0,)), Series((1.0, 2.0)))


def test_only_what_every_round_has_becomes_a_series() -> None:
    assert series([{"a": 1, "b": 2}, {"a": 3}]) == {"a": Series((1.0, 3.0))}
    assert series([]) == {}


def test_who_goes_first_alternates() -> None:
    assert [order(["a", "b"], index) for index in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_no_two_requests_of_a_usual_run_are_the_same() -> None:
    assert len(set(prompts(36))) == 36 and len(prompts(50)) == 50
    assert len({request.seed for request in asked(11)}) == 11


def test_a_stopwatch_adds_up_and_knows_sleep_from_work() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.span("nap"):
            time.sleep(0.02)
    assert watch.spans["nap"].wall_s >= 0.04 > watch.spans["nap"].cpu_s
    assert Span(1.0, 2.0).to_dict() == {"wall_s": 1.0, "cpu_s": 2.0}


def test_rounds_of_two_providers(provider: Any) -> None:
    measured, psnr_db = run(provider, "Steady", "Slow")
    ours, other = measured["ours"], measured["other"]
    assert psnr_db == [120.0] * 4  # two rounds, a fresh process and one that stays in each
    assert len(ours.cold_wall) == len(ours.warm_cpu) == 2 and ours.about == {"model": "nowhere"}
    assert all(row["text"] >= 0.05 for row in other.warm_wall)
    assert all(row["load"] <= row["load + text"] <= row["load + whole"] for row in other.cold_wall)
    assert all(5 < row["peak_rss_mib"] < 1000 for row in ours.cold_wall)


def test_frames_as_floats_are_the_same_frames(provider: Any) -> None:
    assert run(provider, "Steady", "Floats", count=1)[1] == [120.0] * 2


def test_no_numbers_where_frames_differ(provider: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"frames differ: PSNR 29\.0 dB"):
        run(provider, "Steady", "Different", count=1)


def test_a_worker_that_fails_says_what_it_said(provider: Any) -> None:
    with Worker(provider("Broken"), "nowhere", 1) as worker:
        worker.ask({"do": "load"})
        with pytest.raises(BenchmarkError, match=r"Broken failed at 'run'[^!]*RuntimeError: out of ideas"):
            worker.ask({"do": "run", "request": asked(1)[0].to_dict()})


def test_agreement_refuses_other_shapes(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 9)):
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 8, 8, 3), np.uint8))
    with pytest.raises(BenchmarkError, match="differ in shape"):
        rounds.agreement(tmp_path / "a.npy", tmp_path / "b.npy")


def test_the_command_writes_table_and_numbers(
    provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "PROVIDERS", {"glimt": provider("Steady"), "Diffusers": provider("Slow")})
    size = ["--height=8", "--width=8", "--frames=5", "--steps=1", "--threads=1", f"--model={tmp_path}"]
    files = [f"--report={tmp_path / 'report'}", f"--json={tmp_path / 'numbers.json'}"]
    assert cpu.main(["--rounds=2", *size, *files]) == 0
    text = (tmp_path / "report/cpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "python -m benchmarks.cpu --rounds=2" in text and "Only 2 rounds" in text and "PSNR 120" in text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers == json.loads((tmp_path / "report/cpu.json").read_text())
    rows = {row["name"]: row for row in numbers["rows"]}
    assert rows["text"]["ratio"]["median"] > 5 and rows["whole request"]["goal"] == 2.0
    assert rows["peak memory"]["unit"] == "MiB" and rows["decode"]["met"] in (True, False)


def test_the_command_prints_no_numbers_where_frames_differ(
    provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "PROVIDERS", {"glimt": provider("Steady"), "Diffusers": provider("Different")})
    size = ["--height=8", "--width=8", "--frames=5", "--steps=1", "--threads=1", f"--model={tmp_path}"]
    assert cpu.main(["--rounds=1", *size, f"--report={tmp_path / 'report'}"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "no numbers" in said.err and not (tmp_path / "report").exists()


def test_a_row_says_whether_its_goal_is_met() -> None:
    ours, other = Series((1.0, 1.0)), Series((2.0, 3.0))
    assert Row("x", "s", ours, other).met is None
    assert Row("x", "s", ours, other, goal=2.5).met and not Row("x", "s", ours, other, goal=2.6).met
    table = markdown([Row("x", "s", ours, other, goal=2.6)], "a", "b")
    assert "**2.50x** (2.00 - 3.00)" in table and "**missed**" in table


def test_others_are_what_is_busy_and_not_ours() -> None:
    watch = environment.Bystanders()
    assert watch.processors(1e9) in (0.0, None)
    assert environment.busy_warning(0.0) == environment.busy_warning(None) == ""
    assert "busy" in environment.busy_warning(10_000.0)


def test_a_report_folder_can_be_named_after_any_processor() -> None:
    assert environment.slug("AMD EPYC(TM) 9B14 @ 2.6GHz") == "amd-epyc-tm-9b14-2-6ghz"
    assert environment.describe()["processors"] >= 1


def test_workers_import_nothing_heavy_before_they_are_timed() -> None:
    """Whatever a provider needs is imported on its own time, on both sides alike."""
    import subprocess

    code = "import sys, benchmarks.worker, benchmarks.providers; print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "glimt", "diffusers", "pathlib"} & set(done.stdout.split())


@pytest.mark.slow
def test_a_real_run_of_the_least_size(tmp_path: Path) -> None:
    """Both engines start, mark their stages, and agree. What the numbers are is not looked at."""
    size = ["--height=32", "--width=32", "--frames=5", "--steps=2", "--threads=1", "--rounds=1"]
    assert cpu.main([*size, f"--json={tmp_path / 'numbers.json'}", "--no-report"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert min(numbers["psnr_db"]) >= rounds.MIN_PSNR_DB
    assert len(numbers["rows"]) == 8 and all(row["ratio"]["median"] > 0 for row in numbers["rows"])
    for name in ("ours", "other"):
        rows = {row["name"]: row[name]["median"] for row in numbers["rows"]}
        parts = rows["text"] + rows["denoise"] + rows["decode"]
        assert 0.8 * rows["whole request"] < parts <= rows["whole request"]
    assert numbers["about"]["Diffusers"]["text encoder dtype"] == numbers["about"]["glimt"]["dtype"] == "float32"


def test_every_means_can_be_switched_off_and_changes_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    monkeypatch.setattr(bought, "requests", lambda count, **kwargs: requests(count, **{**kwargs, **small}))
    found = bought.measure(1, 1, say=lambda line: None)
    assert set(found["times"]) == {bought.AS_IT_IS, *(means.name for means in bought.MEANS)}
    assert found["least_db"] >= rounds.MIN_PSNR_DB
    assert all(means.name in bought.table(found["times"]) for means in bought.MEANS)

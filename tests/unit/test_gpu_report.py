"""The GPU report, tried out whole on a CPU: its parts, its budget, resuming, and what it says where it cannot run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.gpu_report import correctness, document, forward, supervisor, worker
from benchmarks.gpu_report.__main__ import main
from benchmarks.gpu_report.budget import Budget, OutOfTime
from benchmarks.gpu_report.rows import Rows

from glimt_kernels import dispatch
from glimt_kernels.bench import machine
from glimt_kernels.bench.lost import DeviceLostError
from glimt_kernels.bench.ops import OPS

TINY = ["--device", "cpu", "--tiny", "--repeats", "2"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    assert main([*TINY, "--out", str(path)]) == 0
    return path


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_every_part_is_there(folder: Path) -> None:
    rows = rows_in(folder)
    for part in ("correctness", "kernels"):
        assert {row["op"] for row in rows if row["part"] == part} == set(OPS)
    assert not any(row.get("wrong") for row in rows)
    passes = {row["provider"]: row for row in rows if row["part"] == "forward"}
    assert passes["glimt"]["median_ms"] > 0 and passes["diffusers"]["median_ms"] > 0
    assert passes["diffusers"]["relative_l2"] < 1e-5
    assert "needs a CUDA device" in passes["diffusers compile cudnn"]["absent"]
    assert {path.name for path in folder.iterdir()} == {
        *("rows.jsonl", "report.md", "roofline.png", "eager.png", "error.png")
    }


def test_the_report_says_what_was_right_what_is_missing_and_what_is_unmeasured(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "Nothing that ran is wrong." in text and "Nothing was cut." in text
    assert text.count("*unmeasured*") == len(document.goals.GOALS) + len(document.FORWARD_GOALS)
    assert "- flash-attn: not installed" in text and "- triton did not run: " in text
    assert "| ada_norm | reference | 1 | 0 |" in text and "### attention/cross, tiny" in text


def test_a_report_goes_on_where_it_stopped_and_past_a_kernel_that_takes_the_process_with_it(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = rows_in(folder)
    kept = [row for row in whole if row.get("op") not in ("ada_norm", "forward")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    theirs = tmp_path / "theirs.py"
    theirs.write_text(
        "import os, signal\n\n\n"
        "def wrong(x, scale, shift, eps):\n    return x\n\n\n"
        "def dies(x, scale, shift, eps):\n    os.kill(os.getpid(), signal.SIGSEGV)\n\n\n"
        "PROVIDERS = {'ada_norm': {'dies': dies, 'wrong': wrong}}\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "rows.jsonl").rename(out / "rows.jsonl")
    assert main([*TINY, "--out", str(out), "--provider-file", str(theirs)]) == 1
    after = rows_in(out)
    assert after[: len(kept)] == kept
    new = [row for row in after[len(kept) :] if row["part"] != "rates"]
    assert {(row["part"], row["op"]) for row in new} == {
        *(("correctness", "ada_norm"), ("kernels", "ada_norm"), ("forward", "forward"))
    }
    for part in ("correctness", "kernels"):
        mine = {row["provider"]: row for row in new if row["part"] == part}
        assert mine["dies"]["lost"] and mine["dies"]["refused"] == "the process died of SIGSEGV"
        assert "relative L2 error" in mine["wrong"]["refused"] and "refused" not in mine["native"]
    text = (out / "report.md").read_text()
    assert "**3 results are wrong:**" in text and "- ada_norm, tiny, fp32, dies: the process died of SIGSEGV" in text
    assert "Nothing was cut." in text and not (out / "attempt.json").exists()
    assert "wrong: ada_norm tiny fp32 wrong: relative L2 error" in capfd.readouterr().out


def test_what_does_not_fit_into_the_budget_is_cut_and_listed(tmp_path: Path) -> None:
    assert main([*TINY, "--out", str(tmp_path), "--budget-s", "0"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Cut, for want of time" in text and not (tmp_path / "rows.jsonl").exists()
    assert (
        "- forward: tiny glimt" in text
        and "Nothing was measured." in text
        and "fp32 attention/cross tiny" in text
        and "ada_norm tiny" in text
    )


def test_a_part_is_stopped_when_its_time_is_over() -> None:
    budget = Budget(0.2)
    with pytest.raises(OutOfTime), budget.until(0.5):
        while True:
            try:
                time.sleep(0.01)
            except Exception as error:  # noqa: PERF203 (whoever swallows faults does not swallow this)
                raise AssertionError from error
    assert 0.1 <= budget.used_s() < 5
    with budget.until(1e6):
        time.sleep(0.2)
    with pytest.raises(OutOfTime), budget.until(0.5):
        raise AssertionError("its time was over before it began")


def in_worker(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> tuple[list[str], Rows, float]:
    """(problems, rows, seconds) of a supervised worker that is ``script``, which finds the folder as ``out``."""
    monkeypatch.setattr(supervisor, "GRACE_S", 0.2)
    rows, budget = Rows(tmp_path, "this"), Budget(seconds)
    header = f"import json, os, pathlib, sys, time\nout = pathlib.Path({str(tmp_path)!r})\n"
    noted = {"part": "kernels", "op": "o", "shape": "s", "dtype": "fp32", "provider": "p"}
    header += f"attempt = lambda: (out / 'attempt.json').write_text(json.dumps({noted}))\n"
    problems = supervisor.supervise([sys.executable, "-c", header + script], rows, budget, {"kernels": 0.5})
    return problems, rows, budget.used_s()


def test_a_worker_that_never_comes_back_is_stopped_and_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems, rows, used = in_worker("attempt()\ntime.sleep(100)", tmp_path, monkeypatch, 6.0)
    assert not problems and 3.2 <= used < 30
    (row,) = rows.failures()
    assert "did not come back within" in row["refused"] and (row["part"], row["provider"]) == ("kernels", "p")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit(5)", "before it called anything: the process ended with code 5"),
        ("sys.exit(3)", "the worker ended with code 3"),  # the GPU lost, and no row that says by whom
        ("sys.exit(2)", "the worker ended with code 2"),
    ],
)
def test_a_worker_that_cannot_even_begin_is_not_started_for_ever(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems, rows, _ = in_worker(script, tmp_path, monkeypatch, 100.0)
    assert said in problems[0] and not rows.failures()
    around = document.Around({"device": "this"}, problems, {}, 1.0)
    assert "**It ended early:** the worker ended" in document.text(rows, None, around)


def breaks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> dispatch.Candidate:
    """As after an illegal access: an error at the call, and from then on at every synchronization."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)

    def run(*args: Any) -> Any:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: fail("still"))
        fail("CUDA error: an illegal memory access was encountered")

    def fail(words: str) -> None:
        raise RuntimeError(words)

    return dispatch.Candidate("ada_norm", "breaks", run)


def test_after_a_sticky_error_nothing_is_said_of_others_and_a_new_process_passes_over_its_maker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness, "OPS", ("ada_norm", "gated_ada_norm"))
    op = dispatch.find("ada_norm")
    broken = replace(op, candidates=(breaks_the_gpu(monkeypatch), *op.candidates))
    monkeypatch.setitem(dispatch._OPS, "ada_norm", broken)
    rows = Rows(tmp_path, machine.device_name(CPU))
    with pytest.raises(DeviceLostError):
        list(correctness.sweep(rows, CPU, tiny=True))
    (row,) = rows.of("correctness")
    assert row["provider"] == "breaks" and row["wrong"] and "illegal memory access" in row["refused"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    again = Rows(tmp_path, machine.device_name(CPU))
    assert not list(correctness.sweep(again, CPU, tiny=True))
    assert [one["provider"] for one in again.failures()] == ["breaks"]
    right = {(one["op"], one["provider"]) for one in again.of("correctness") if "relative_l2" in one}
    assert right >= {("ada_norm", "native"), ("ada_norm", "reference"), ("gated_ada_norm", "reference")}
    assert not correctness.missing(again, tiny=True)


def test_an_error_that_leaves_the_gpu_as_it_was_is_a_row_like_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    monkeypatch.setattr(correctness, "OPS", ("ada_norm",))
    monkeypatch.setattr(correctness, "build", lambda *given: 1 // 0)
    rows = Rows(tmp_path, "this")
    assert len(list(correctness.sweep(rows, CPU, tiny=True))) == 1
    (row,) = rows.failures()
    assert (row["provider"], "lost" in row) == ("all", False) and "ZeroDivisionError" in row["refused"]
    assert not correctness.missing(rows, tiny=True)


def test_missing_peers_are_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward.importlib.util, "find_spec", lambda name: None)
    case = forward.TINY["tiny"]
    assert "relative_l2" in forward.judge(case, "glimt", torch.float32, CPU)
    for name in forward.PEERS:
        assert "pip install diffusers" in forward.judge(case, name, torch.float32, CPU)["absent"]


def test_each_forward_is_kept_at_once_and_those_that_compile_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(case: Any, provider: str, *rest: Any) -> dict[str, Any]:
        if provider == "diffusers compile cudnn":
            raise OutOfTime
        if provider == "diffusers" and case is forward.CASES["wan-14b-480p"]:
            raise torch.OutOfMemoryError("no room")
        return {"median_ms": 1.0, "wrong": False}

    monkeypatch.setattr(forward, "_measure", measured)
    rows = Rows(tmp_path, "this")
    with pytest.raises(OutOfTime):
        list(forward.compare(rows, forward.Clock(CPU), forward.Rates(1.0, 1.0), "fp32", forward.CASES, 3))
    done = [(row["shape"], row["provider"], "median_ms" in row) for row in rows_in(tmp_path)]
    assert done == [
        ("wan-1.3b-480p", "glimt", True),
        ("wan-1.3b-480p", "glimt 8-bit", True),
        ("wan-1.3b-480p", "diffusers", True),
        ("wan-14b-480p", "glimt", True),
        ("wan-14b-480p", "glimt 8-bit", True),
        ("wan-14b-480p", "diffusers", False),
    ]
    assert {name for _, name in forward.missing(rows, forward.CASES)} == {"diffusers compile cudnn"}


def test_nothing_is_timed_twice() -> None:
    """Where a later table asks for one more provider, it asks for that alone."""
    options = argparse.Namespace(device="cpu", tiny=False, repeats=20, provider_file=None)
    asked = worker.settings(options)
    seen = [(shape, one.providers) for one in asked for shape in one.shape_names]
    assert (worker.FIRST, ["compile"]) in seen and len(seen) == len({shape for shape, _ in seen}) + 1
    assert all(not one.compile and one.limit_s <= 5 for one in asked)


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2
    assert "it needs a CUDA device" in capsys.readouterr().err
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text('{"device": "another", "part": "kernels"}\n')
    assert main([*TINY, "--out", str(tmp_path)]) == 2
    assert "take another folder" in capsys.readouterr().err


def test_forwards_are_of_the_published_size() -> None:
    """283 and 1,678 TFLOP, from the models' configs and 32,760 tokens."""
    small, large = forward.CASES.values()
    assert small.tokens == large.tokens == 32_760
    assert small.flops == pytest.approx(283.0e12, rel=2e-3) and large.flops == pytest.approx(1678e12, rel=2e-3)


def test_correctness_covers_bfloat16_first_and_every_op(tmp_path: Path) -> None:
    cases = correctness.cases(tiny=False)
    assert cases[0][0] == "bf16" and {op for _, op, _ in cases} == set(OPS)
    assert len(cases) == 3 * len(OPS) * len(correctness.SHAPES_HERE)
    assert correctness.missing(Rows(tmp_path, machine.device_name(CPU)), tiny=False) == cases

"""The GPU report, tried out whole on a CPU: its parts, its budget, resuming, and what it says where it cannot run."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.gpu_report import correctness, document, forward
from benchmarks.gpu_report.__main__ import main
from benchmarks.gpu_report.budget import Budget, OutOfTime
from benchmarks.gpu_report.rows import Rows

from glimt_kernels import dispatch
from glimt_kernels.bench import machine
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
    assert {path.name for path in folder.iterdir()} >= {"report.md", "roofline.png", "eager.png", "error.png"}


def test_the_report_says_what_was_right_what_is_missing_and_what_is_unmeasured(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "Nothing that ran is wrong." in text and "Nothing was cut." in text
    assert text.count("*unmeasured*") == len(document.goals.GOALS) + len(document.FORWARD_GOALS)
    assert "- flash-attn: not installed" in text and "- triton did not run: " in text
    assert "| ada_norm | reference | 1 | 0 |" in text and "### attention/cross, tiny" in text


def test_a_report_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    whole = rows_in(folder)
    kept = [row for row in whole if row["part"] == "correctness"]
    kept += [row for row in whole if row["part"] == "kernels" and row["op"] != "ada_norm"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert main([*TINY, "--out", str(tmp_path)]) == 0
    after = rows_in(tmp_path)
    assert after[: len(kept)] == kept
    assert {(row["part"], row["op"]) for row in after[len(kept) :]} == {("kernels", "ada_norm"), ("forward", "forward")}


def test_what_does_not_fit_into_the_budget_is_cut_and_listed(tmp_path: Path) -> None:
    assert main([*TINY, "--out", str(tmp_path), "--budget-s", "0"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Cut, for want of time" in text and not (tmp_path / "rows.jsonl").exists()
    assert "- forward: tiny" in text and "fp32 attention/cross tiny" in text and "ada_norm tiny" in text


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


def test_a_wrong_kernel_is_named_and_fails_the_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [row for row in rows_in(folder) if (row["part"], row["op"]) != ("correctness", "ada_norm")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    op = dispatch.find("ada_norm")
    wrong = dispatch.Candidate("ada_norm", "wrong", lambda x, scale, shift, eps: x)
    monkeypatch.setitem(dispatch._OPS, "ada_norm", replace(op, candidates=(wrong, *op.candidates)))
    assert main([*TINY, "--out", str(tmp_path)]) == 1
    assert "wrong: ada_norm tiny fp32 wrong: relative L2 error" in capsys.readouterr().out
    assert "**1 results are wrong:**" in (tmp_path / "report.md").read_text()


def test_missing_peers_are_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward.importlib.util, "find_spec", lambda name: None)
    found = forward.judge(forward.TINY["tiny"], torch.float32, CPU)
    assert "relative_l2" in found["glimt"]
    assert all("pip install diffusers" in found[name]["absent"] for name in forward.PROVIDERS[1:])


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

"""The kernel benchmark: right results get times, wrong ones a reason, and a run goes on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.kernels.__main__ import main
from benchmarks.kernels.ops import OPS
from benchmarks.kernels.timing import Timing
from benchmarks.kernels.workload import error
from benchmarks.shapes import SHAPES

QUICK = ["--device", "cpu", "--dtype", "fp32", "--shapes", "tiny", "--repeats", "2"]


def _rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "kernels.jsonl").read_text().splitlines()]


def test_a_run_compares_what_runs_here_and_says_why_the_rest_does_not(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main([*QUICK, "--op", "ada_norm", "--providers", "eager,native,reference", "--out", str(tmp_path)]) == 0
    rows = {row["provider"]: row for row in _rows(tmp_path)}
    assert all("median_ms" in rows[name] for name in ("eager", "native", "reference"))
    assert {path.name for path in tmp_path.iterdir()} >= {"kernels.md", "roofline.png", "eager.png", "error.png"}
    before = _rows(tmp_path)
    assert main([*QUICK, "--op", "ada_norm", "--providers", "eager", "--out", str(tmp_path)]) == 0
    assert _rows(tmp_path) == before


def test_a_wrong_third_party_gets_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def wrong(x, scale, shift, eps):\n    return x\n\n\n"
        "def breaks(x, scale, shift, eps):\n    raise RuntimeError('no such chip')\n\n\n"
        "PROVIDERS = {'ada_norm': {'wrong': wrong, 'breaks': breaks}}\n"
    )
    asked = [*QUICK, "--op", "ada_norm", "--providers", "eager,wrong,breaks", "--provider-file", str(mine)]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    rows = {row["provider"]: row for row in _rows(tmp_path)}
    assert "median_ms" not in rows["wrong"] and "relative L2 error" in str(rows["wrong"]["refused"])
    assert "no such chip" in str(rows["breaks"]["refused"])
    assert main([*asked, "--lossy", "wrong"]) == 0
    assert "| wrong |" in capsys.readouterr().out


@pytest.mark.parametrize("op", OPS)
def test_every_workload_is_right_in_eager(op: str) -> None:
    from importlib import import_module

    made = import_module(f"benchmarks.kernels.ops.{op}").workload(
        "tiny", SHAPES["tiny"], torch.float32, torch.device("cpu")
    )
    found = made.eager(*made.args)
    tensors = [found] if isinstance(found, torch.Tensor) else list(found)
    assert error(made.part(tensors), list(made.exact())).relative_l2 < 1e-5
    assert made.flops > 0 and made.num_bytes > 0


def test_tokens_of_real_shapes_are_those_of_their_clips() -> None:
    assert SHAPES["wan-1.3b-480p"].tokens == 32_760
    assert SHAPES["wan-14b-720p"].tokens == 75_600
    assert SHAPES["wan-5b-720p"].tokens == 27_280
    assert SHAPES["hunyuan-720p"].tokens == 118_800


def test_percentiles_are_of_the_values_themselves() -> None:
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (timing.percentile_ms(20), timing.median_ms, timing.percentile_ms(80)) == (2.0, 3.0, 4.0)

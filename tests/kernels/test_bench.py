"""The kernel benchmark: right results get times, wrong ones a reason, and a run goes on where it stopped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import glimt_kernels
from glimt_kernels import dispatch, tuned
from glimt_kernels.bench import SHAPES, BenchError, Settings, Shape, goals, machine, run, third_party, tune
from glimt_kernels.bench.compare import append_rows, judge, known_rows
from glimt_kernels.bench.ops import OPS, build
from glimt_kernels.bench.workload import error, flat

README = Path(glimt_kernels.__file__).parent / "bench" / "README.md"
CPU = torch.device("cpu")
ODD = Shape((3, 7, 9), 3, 32, 131, 1, 1, (5, 6, 10))
DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16}


def quick(**changes: Any) -> Settings:
    settings: dict[str, Any] = {"ops": ["ada_norm"], "shapes": ["tiny"], "device": "cpu", "repeats": 2}
    return Settings(**{**settings, **changes})


def by_provider(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["provider"]: row for row in rows}


def test_a_run_compares_what_runs_here_and_says_why_the_rest_does_not(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = ["eager", "native", "reference", "triton", "nobody"]
    results = run(quick(providers=asked, out=tmp_path))
    rows = by_provider(results.rows)
    for name in ("eager", "native", "reference"):
        assert 0 < rows[name]["p20_ms"] <= rows[name]["median_ms"] <= rows[name]["p80_ms"]
        assert rows[name]["share"] == rows[name]["of_copy"] > 0
    assert "interpreted" in rows["triton"]["refused"] and "no such provider" in rows["nobody"]["refused"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("rows.jsonl", "report.md", "roofline.png", "eager.png", "error.png")
    }
    text = (tmp_path / "report.md").read_text()
    assert "| native |" in text and "- clocks before: not read on a CPU" in text and "*unmeasured*" in text
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == results.rows
    again = run(quick(providers=["eager"], out=tmp_path))
    assert again.rows == results.rows, "what is known is not measured again"


def test_a_folder_of_another_machine_is_refused_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"device": "this"}\n{"dev')
    append_rows(tmp_path, [{"device": "this", "n": 2}])
    assert known_rows(tmp_path, "this") == [{"device": "this"}, {"device": "this", "n": 2}]
    with pytest.raises(BenchError, match="holds rows of this; this is that: take another folder"):
        known_rows(tmp_path, "that")


def test_the_example_of_a_provider_in_the_readme_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    (tmp_path / "mine.py").write_text(example)
    rows = by_provider(run(quick(providers=["eager", "mine"], provider_file=tmp_path / "mine.py")).rows)
    assert rows["mine"]["median_ms"] > 0


def test_a_wrong_third_party_gets_no_time_unless_it_is_said_to_be_lossy(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def wrong(x, scale, shift, eps):\n    return x\n\n\n"
        "def blank(x, scale, shift, eps):\n    return x * float('nan')\n\n\n"
        "def breaks(x, scale, shift, eps):\n    raise RuntimeError('no such chip')\n\n\n"
        "PROVIDERS = {'ada_norm': {'wrong': wrong, 'blank': blank, 'breaks': breaks}}\n"
    )
    asked = quick(providers=["eager", "wrong", "blank", "breaks"], provider_file=mine)
    rows = by_provider(run(asked).rows)
    assert "median_ms" not in rows["wrong"] and "relative L2 error" in rows["wrong"]["refused"]
    assert "median_ms" not in rows["blank"] and "relative L2 error nan" in rows["blank"]["refused"]
    assert "no such chip" in rows["breaks"]["refused"]
    lossy = by_provider(run(quick(providers=["wrong"], provider_file=mine, lossy=["wrong"])).rows)
    assert lossy["wrong"]["median_ms"] > 0 and lossy["wrong"]["relative_l2"] > 0.01


def test_an_implementation_that_says_it_is_lossy_is_timed_and_never_tuned_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    op = dispatch.find("ada_norm")

    def loss(by: float) -> dispatch.Candidate:
        name = "lossy" if by == by else "blank"
        why = ["it is lossy: for this test"]
        return dispatch.Candidate("ada_norm", name, lambda x, *rest: x * by, reluctance=lambda case: why)

    changed = replace(op, candidates=(loss(0.9), loss(float("nan")), *op.candidates))
    monkeypatch.setitem(dispatch._OPS, "ada_norm", changed)
    rows = by_provider(run(quick(providers=["eager", "lossy", "blank"])).rows)
    assert rows["lossy"]["median_ms"] > 0 and rows["lossy"]["relative_l2"] > 0.01
    assert "error nan" in rows["blank"]["refused"], "lossy is not broken"
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    tuned.forget()
    (trial,), _ = tune.tune(quick())
    tuned.forget()
    assert set(trial.median_ms) == {"native", "reference"} and not trial.refused


def test_a_provider_that_loses_the_gpu_ends_the_run_and_is_passed_over_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: str) -> None:
        raise RuntimeError(words)

    mine = tmp_path / "mine.py"
    mine.write_text(
        "def breaks(x, scale, shift, eps):\n    raise RuntimeError('CUDA error: an illegal memory access')\n\n\n"
        "PROVIDERS = {'ada_norm': {'breaks': breaks}}\n"
    )
    asked = quick(providers=["eager", "breaks", "reference"], provider_file=mine, out=tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: fail("still"))
    with pytest.raises(BenchError, match=r"breaks left the GPU unusable .*illegal memory access"):
        run(asked)
    (row,) = known_rows(tmp_path / "out", machine.device_name(CPU))
    assert row["provider"] == "breaks" and row["lost"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    rows = by_provider(run(asked).rows)
    assert set(rows) == {"eager", "breaks", "reference"} and rows["reference"]["median_ms"] > 0
    assert len(run(asked).rows) == 3, "and then all of it is known"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("PROVIDERS = {'ada_nrm': {}}", "no op 'ada_nrm'"),
        ("PROVIDERS = {'ada_norm': {'x': 3}}", "x is not callable"),
        ("PROVIDERS = 3", "found int"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "KeyError"),
    ],
)
def test_a_provider_file_that_is_none_is_an_error(text: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(BenchError, match=wrong):
        third_party.load(tmp_path / "mine.py")


def test_installed_packages_announce_their_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    def announced(given: Any) -> None:
        point = EntryPoint("theirs", "module:PROVIDERS", third_party.GROUP)
        monkeypatch.setattr(EntryPoint, "load", lambda self: given())
        monkeypatch.setattr(third_party, "entry_points", lambda group: [point])

    announced(lambda: {"attention": {"fast": max}, "attention/cross": {"fast": min}})
    found = third_party.load(None)
    assert third_party.of(found, "attention") == {"fast": max}
    assert third_party.of(found, "attention/cross") == {"fast": min}
    announced(lambda: 1 // 0)
    with pytest.raises(BenchError, match="entry point theirs: ZeroDivisionError"):
        third_party.load(None)


def test_clocks_are_read_from_nvidia_smi_or_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = torch.device("cuda", 0)
    assert machine.clocks(gpu) == "not known: there is no nvidia-smi here"
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$3" = --id=GPU-1-2 ] && echo "1980 MHz, 2619 MHz, 1980 MHz, 45, 300.00 W"\n')
    program.chmod(0o755)
    assert machine.clocks(gpu).startswith("clocks.sm 1980 MHz, clocks.mem 2619 MHz, ")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.clocks(gpu) == "not known: nvidia-smi failed (CalledProcessError)"


def test_all_that_is_wrong_with_the_settings_is_said_at_once() -> None:
    with pytest.raises(BenchError) as caught:
        Settings(
            ops=["atention"],
            shapes=["huge"],
            dtype="fp64",
            device="tpu",
            repeats=0,
            limit_s=-1,
            provider_file=Path("none"),
        )
    found = caught.value.problems
    assert [problem.partition(":")[0] for problem in found] == [
        *("op", "shapes", "dtype", "device", "repeats", "limit_s", "provider_file")
    ]
    assert "did you mean 'attention'" in found[0]


def test_an_op_stands_for_all_its_workloads() -> None:
    assert quick(ops=["attention"]).workloads == ["attention", "attention/cross"]
    assert quick(ops=["attention/cross"]).workloads == ["attention/cross"]
    assert quick(ops=[]).workloads == list(OPS)


@pytest.mark.parametrize("dtype", DTYPE_OF)
@pytest.mark.parametrize("op", OPS)
def test_every_workload_is_the_op_that_it_says(op: str, dtype: str) -> None:
    """In plain PyTorch and by the reference alike, each held to the exact result; on odd shapes too."""
    for name, shape in {"tiny": SHAPES["tiny"], "odd": ODD}.items():
        torch.manual_seed(0)
        made = build(op, name, shape, DTYPE_OF[dtype], CPU)
        runs = made.runs or {"reference": dispatch.candidates(made.op)[-1].run}
        judged = judge(made, runs)["reference"]
        assert "refused" not in judged, judged
        if made.honest is None:
            found = error(made.part(flat(made.eager(*made.args))), list(made.exact())).relative_l2
            rounds = dtype == "bf16" or any(word in op for word in ("8", "nv12", "quantize"))  # to bytes at the latest
            assert found < (0.05 if rounds else 1e-5)
        assert made.flops > 0 and made.num_bytes > 0 and made.kind in ("matrix", "element-wise")


def test_every_op_has_a_workload() -> None:
    made = {build(op, "tiny", SHAPES["tiny"], torch.float32, CPU).op for op in OPS}
    assert made >= set(dispatch._OPS)


def test_work_is_counted_by_formula() -> None:
    """Against sums over the tensors themselves, where nothing is read or written twice."""
    tiny = SHAPES["tiny"]
    norm = build("ada_norm", "tiny", tiny, torch.bfloat16, CPU)
    assert norm.num_bytes == 2 * 2 * tiny.tokens * tiny.width
    dense = build("attention", "tiny", tiny, torch.bfloat16, CPU)
    assert dense.flops == 2 * 2 * tiny.heads * tiny.tokens**2 * tiny.head_dim
    linear = build("linear_w8a8/int8", "tiny", tiny, torch.bfloat16, CPU)
    x, x_scales, weight, scales = linear.args[:4]
    out = linear.eager(*linear.args)
    assert linear.num_bytes == sum(t.nbytes for t in (x, x_scales, weight, scales, out))
    assert linear.flops == 2 * out.numel() * x.shape[-1]


def timed(op: str, provider: str, milliseconds: float, **more: Any) -> dict[str, Any]:
    about = {"op": op, "provider": provider, "shape": goals.SHAPE, "dtype": "bf16", "on_gpu": True}
    return {**about, "median_ms": milliseconds, "share": 0.5, "tflops": 1 / milliseconds, "kind": "matrix", **more}


def test_goals_are_met_missed_or_unmeasured() -> None:
    rows = [
        timed("attention", "triton", 1.0, share=0.66),
        timed("attention", "eager", 1.5),
        timed("ada_norm", "triton", 1.0, share=0.9, kind="element-wise"),
        timed("ada_norm", "eager", 9.0, kind="element-wise"),
        timed("rms_norm", "triton", 1.0, share=0.8, kind="element-wise"),
        timed("rms_norm", "eager", 20.0, kind="element-wise"),
    ]
    text = goals.table(rows)
    verdicts = [line.rpartition("| ")[2] for line in text.replace(" |\n", "\n").removesuffix(" |").splitlines()[2:]]
    expected = ["met", "*unmeasured*", "**missed**", "*unmeasured*", "*unmeasured*", "**missed**", "met"]
    assert verdicts == [*expected, *["*unmeasured*"] * 5]  # of FP8 and of convolutions there are no rows
    on_cpu = goals.table([{**one, "on_gpu": False} for one in rows])
    assert on_cpu.count("*unmeasured*") == len(goals.GOALS)


def test_tokens_of_real_shapes_are_those_of_their_clips() -> None:
    assert SHAPES["wan-1.3b-480p"].tokens == 32_760
    assert SHAPES["wan-14b-720p"].tokens == 75_600
    assert SHAPES["wan-5b-720p"].tokens == 27_280
    assert SHAPES["hunyuan-720p"].tokens == 118_800

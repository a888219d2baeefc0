"""Tuned choices: found, kept, honoured below every override, and passed over with a reason where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import random

import glimt_kernels as kernels
from glimt_kernels import dispatch, tuned
from glimt_kernels.bench import SHAPES, BenchError, Settings
from glimt_kernels.bench.ops import OPS, build
from glimt_kernels.bench.tune import MARGIN, Trial, choices, tune

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    tuned.forget()
    yield tmp_path
    tuned.forget()


def call(tokens: int = 5) -> tuple[Any, ...]:
    m = random(1, 1, 16, seed=2)
    return random(1, tokens, 16), m, m.neg(), 1e-6


def chosen(args: tuple[Any, ...], impl: str | None = None) -> str:
    op = dispatch.find("ada_norm")
    return dispatch.select("ada_norm", op.case(args), impl).impl


def other_than_built_in(args: tuple[Any, ...]) -> str:
    assert chosen(args) == "native"
    return "reference"


def test_a_tuned_choice_goes_before_the_built_in_order_and_after_every_override(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = call()
    tuned.write(CPU, {tuned.key("ada_norm", args): other_than_built_in(args)})
    assert chosen(args) == "reference"
    assert chosen(args, "native") == "native"
    monkeypatch.setenv("GLIMT_IMPL_ADA_NORM", "native")
    assert chosen(args) == "native"
    tuned.write(CPU, {tuned.key("ada_norm", args): "native"})
    with kernels.references_only():
        assert chosen(args) == "reference"


def test_it_is_for_calls_of_its_size_and_dtype_alone() -> None:
    args = call(9)
    tuned.write(CPU, {tuned.key("ada_norm", args): other_than_built_in(args)})
    assert [chosen(call(tokens)) for tokens in (8, 9, 16, 17)] == ["native", "reference", "reference", "native"]
    rows = random(3, 8)
    keys = {tuned.key("quantize_rows", (rows.to(dtype), kind, False)) for dtype in (torch.float32, torch.float16)
            for kind in ("int8", "fp8")}  # fmt: skip
    assert len(keys) == 4


def test_heads_and_their_width_are_part_of_it() -> None:
    """12 heads of 128 are not 24 of 64, which have as many elements."""

    def of(heads: int, head_dim: int) -> str:
        q = random(1, 4, heads, head_dim)
        return tuned.key("attention", (q, q, q, 1.0, None))

    assert len({of(12, 128), of(24, 64), of(16, 128), of(12, 112)}) == 4


@pytest.mark.parametrize("workload", OPS)
def test_what_the_benchmark_times_is_known_by_the_key_of_a_call(workload: str) -> None:
    """All that the schema has is there, which a call gives."""
    made = build(workload, "tiny", SHAPES["tiny"], torch.float32, CPU)
    if not made.runs:
        schema = dispatch.find(made.op).node._schema
        assert len(made.args) == len(schema.arguments), schema


def test_calls_are_timed_once_a_key_on_tensors_like_theirs() -> None:
    x, m = torch.empty(2, 5, 16, device="meta"), torch.empty(2, 1, 16, device="meta")
    weight, gate = torch.empty(16, 16, device="meta"), torch.empty(2, 5, 16, device="meta")
    q = torch.empty(2, 5, 2, 8, device="meta")
    calls = [
        ("ada_norm", (x, m, m, 1e-6)),
        ("ada_norm", (x[:, :4], m, m, 1e-6)),  # 128 elements for 160: another key
        ("ada_norm", (x, m, m, 1e-5)),
        ("linear", (x, weight, None, None, None, "gelu_erf")),
        ("linear", (x, weight, weight[0], gate, x, "gelu_tanh")),
        ("linear", (x[0], weight, weight[0], None, x[0], "none")),
        ("attention", (q, q, q, 0.3, m[:, 0, :5])),
        ("layer_norm", (x, weight[0], weight[0], 1e-6)),
    ]
    asked = Settings(ops=["ada_norm", "linear", "attention"], device="cpu", repeats=1)
    trials, _ = tune(asked, {"model": calls})
    assert [trial.workload for trial in trials] == ["ada_norm"] * 2 + ["linear"] * 3 + ["attention"]
    assert all(trial.shape == "model" and not trial.refused for trial in trials)
    assert {trial.key for trial in trials} == {tuned.key(*call) for call in calls[:-1]}
    assert all(tuned.lookup(op, args, CPU) for op, args in calls[:-1])
    assert not tuned.lookup(*calls[-1], CPU)


def test_what_it_names_but_cannot_run_leaves_the_built_in_order() -> None:
    args = call()
    tuned.write(CPU, {tuned.key("ada_norm", args): "cuda"})
    assert chosen(args) == "native"
    x = args[0].clone().requires_grad_()
    tuned.write(CPU, {tuned.key("ada_norm", args): "native"})
    assert chosen((x, *args[1:])) == "reference", "a gradient is wanted"


def test_the_inventory_shows_it_where_all_sizes_agree() -> None:
    def shown() -> str:
        (row,) = (row for row in kernels.inventory(device=CPU) if row["op"] == "ada_norm" and row["chosen"])
        return str(row["impl"])

    tuned.write(CPU, {tuned.key("ada_norm", call()): "reference"})
    assert shown() == "reference"
    tuned.write(CPU, {tuned.key("ada_norm", call(40)): "native"})
    assert shown() == "native", "they differ: the built-in order"


def test_a_new_process_reads_what_was_kept_and_adds_to_it() -> None:
    tuned.write(CPU, {"one": "a"})
    tuned.forget()
    path = tuned.write(CPU, {"two": "b"})
    assert tuned.read(CPU).choices == {"one": "a", "two": "b"}
    assert [path] == list(path.parent.iterdir()), "nothing is left beside the file"
    assert tuned.states()["cpu"] == f"2 choices in {path}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "NVIDIA H200"}, "it was made on NVIDIA H200"),
        ({"format": 0}, "its format is 0"),
        ({"made_by": {**tuned.versions(), "torch": "1.0"}}, "it was made with torch 1.0, here"),
        ({"made_by": {**tuned.versions(), "kernels": "old"}}, "it was made with kernels old, here"),
        ({"choices": 3}, "it cannot be read"),
    ],
)
def test_a_foreign_stale_or_damaged_file_is_ignored_with_its_reason(change: dict[str, Any], reason: str) -> None:
    args = call()
    path = tuned.write(CPU, {tuned.key("ada_norm", args): "reference"})
    assert chosen(args) == "reference"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    tuned.forget()
    assert chosen(args) == "native"
    state = tuned.states()["cpu"]
    assert f"{path} is ignored: {reason}" in state and state.endswith("run: glimt tune")
    path.write_text("{")
    tuned.forget()
    assert "cannot be read" in tuned.states()["cpu"]


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    args = call()
    tuned.write(CPU, {tuned.key("ada_norm", args): "reference"})
    monkeypatch.setenv(tuned.VARIABLE, "off")
    tuned.forget()
    assert chosen(args) == "native" and "off" in tuned.states()["cpu"]
    with pytest.raises(BenchError, match="GLIMT_TUNED is off"):
        tune(Settings(device="cpu"))
    with pytest.raises(ValueError, match="GLIMT_TUNED is off"):
        tuned.write(CPU, {})


def trial(**median_ms: float) -> Trial:
    return Trial("ada_norm", "tiny", "key", "native", dict(sorted(median_ms.items(), key=lambda item: item[1])))


def test_the_built_in_choice_stays_unless_another_is_clearly_faster() -> None:
    assert trial(native=1.0, reference=1.0 - MARGIN / 2).best == "native"
    assert trial(native=1.0, reference=0.5).best == "reference"
    assert trial(reference=0.5).best == "reference", "the built-in one was refused"
    both = [trial(native=1.0, reference=2.0), trial(native=1.0, reference=0.9)]
    assert choices(both) == {"key": "native"}, "workloads with one key share one choice"


def test_tuning_times_what_can_run_and_keeps_what_a_call_then_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> torch.Tensor:
        for _ in range(20):
            result: torch.Tensor = native.run(*args)
        return result

    op = dispatch.find("ada_norm")
    native, wrong = op.candidates[0], dispatch.Candidate("ada_norm", "wrong", lambda x, scale, shift, eps: x)
    changed = replace(op, candidates=(wrong, dispatch.Candidate("ada_norm", "slow", slow), *op.candidates))
    monkeypatch.setitem(dispatch._OPS, "ada_norm", changed)
    said: list[str] = []
    (found,), path = tune(Settings(ops=["ada_norm"], shapes=["tiny"], device="cpu", repeats=5), say=said.append)
    assert set(found.median_ms) == {"native", "reference", "slow"} and found.built_in == "wrong"
    assert "relative L2 error" in found.refused["wrong"] and found.best != "slow"
    assert said == [str(found)] and json.loads(path.read_text())["choices"] == {found.key: found.best}
    assert tuned.table(CPU).choices[found.key] == found.best

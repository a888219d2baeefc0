"""``glimt compile`` and ``glimt engines``: what is typed, what is told, and what is left in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compile.builders import Builder, exported_once
from glimt.cli import main
from glimt.cli.parser import UsageError, parse
from glimt.compile import build as building
from models import tiny


@pytest.fixture
def glimt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command on a store of this test's own; gives its exit code, the JSON it printed, and the other stream."""
    monkeypatch.setattr(building, "builder", lambda name: Builder())
    monkeypatch.setattr(building, "write_graph", exported_once)

    def run(*words: str, code: int = 0) -> tuple[dict[str, Any], str]:
        assert main([*words, "--out", str(tmp_path), "--json"]) == code
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err

    return run


@pytest.fixture
def compiled(glimt: Any) -> dict[str, Any]:
    words = ("--bucket", "32x48x1,48X32x5", "--target", "sm_86,sm_89", "--target", "sm_120", "--unguided")
    result, told = glimt("compile", str(tiny.folder("t2v")), *words)
    told = [line for line in told.splitlines() if line.startswith("transformer ")]
    assert len(told) == 6 and told[2] == "transformer 32x48x1 for sm_120: 0.5 s"
    return result


def test_compile_tells_what_it_made(compiled: dict[str, Any]) -> None:
    assert compiled["spec"] == {
        "buckets": [[48, 32, 1], [32, 48, 5]], "targets": ["sm_86", "sm_89", "sm_120"], "backend": "tensorrt-rtx",
        "precision": "bf16", "guided": False,
    }  # fmt: skip
    assert [(engine["bucket"], engine["target"]) for engine in compiled["engines"]] == [
        (bucket, target) for bucket in ("32x48x1", "48x32x5") for target in ("sm_86", "sm_89", "sm_120")
    ]
    assert all(Path(engine["path"]).read_bytes() == b"half" for engine in compiled["engines"])


def test_engines_are_listed_shown_verified_and_pruned(glimt: Any, compiled: dict[str, Any], tmp_path: Path) -> None:
    listed, _ = glimt("engines")
    assert {engine["engine"] for engine in listed["engines"]} == {engine["engine"] for engine in compiled["engines"]}
    assert [graph["form"]["prompts"] for graph in listed["graphs"]] == [1]

    engine = compiled["engines"][0]
    shown, _ = glimt("engines", "show", engine["engine"][:10])
    assert shown["key"]["gpu"] == "sm_86" and shown["key"]["library"] == "tensorrt-rtx 1.0"
    assert shown["files"]["plan"]["bytes"] == 4

    assert set(map(tuple, glimt("engines", "verify")[0]["problems"].values())) == {()}
    Path(engine["path"]).write_bytes(b"ha")
    found, _ = glimt("engines", "verify", code=1)
    assert [name for name, problems in found["problems"].items() if problems] == [engine["engine"]]

    assert glimt("engines", "prune")[0]["removed"] == [engine["engine"]]
    assert set(glimt("engines", "prune", "--graphs")[0]["removed"]) == {listed["graphs"][0]["graph"]}
    pruned, _ = glimt("engines", "prune", "--max", "9")
    assert len(pruned["removed"]) == 3 and pruned["kept_bytes"] == 8
    assert len(glimt("engines", "list")[0]["engines"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show",), "engine: say which"),
        (("show", "0000"), "none begins so"),
        (("verify", "8dba"), "only show takes one"),
        (("list", "--max", "1GiB"), "for prune"),
    ],
)
def test_what_engines_is_asked_in_vain(words: tuple[str, ...], says: str, glimt: Any) -> None:
    result, _ = glimt("engines", *words, code=2)
    assert says in result["error"]["problems"][0]


def test_compile_names_every_mistake(glimt: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["compile", "--bucket", "832x480", "--taget", "sm_89"])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for says in ("did you mean '--target'", "as 832x480x81", "target is missing: say for which cards"):
        assert says in text
    result, _ = glimt("compile", "--bucket", "832x480x81", "--target", "sm_90", "--precision", "fp32", code=2)
    assert [problem.split(":")[0] for problem in result["error"]["problems"]] == ["--target", "--precision"]
    result, _ = glimt("compile", "--bucket", "100x96x33", "--target", "sm_89", code=2)
    assert result["error"]["problems"] == ["--bucket: 100x96x33: width 100 is not a multiple of 16; nearest: 96 or 112"]

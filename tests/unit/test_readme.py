"""What the READMEs tell people to type exists, and the example in Python does what it says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from glimt.cli.parser import parse
from glimt.config import EngineConfig
from glimt.plan import Planner
from glimt.request import GenerateRequest
from glimt.video.record import read_record
from glimt.weights.folder import read_folder
from glimt_kernels import dispatch, status
from models import tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"(\S*/)?(make|python|glimt)\s+\S")


def commands() -> list[str]:
    """Every shell command of the READMEs: indented lines without their comments, and code within sentences."""
    found = []
    for file in ("README.md", "benchmarks/README.md"):
        text = FENCE.sub("", (ROOT / file).read_text(encoding="utf-8"))
        lines = [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
        found += [command for command in (*lines, *spans) if COMMAND.match(command)]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_typed_as_it_stands(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        for word in words:
            name, variable, _ = word.partition("=")
            assert re.search(rf"^(export )?{name} \?=" if variable else rf"^{name}:", MAKEFILE, re.M), word
    elif program == ".venv/bin/glimt":
        parse(words)
    else:
        assert (program, words[0]) == (".venv/bin/python", "-m")
        module, *options = words[1:]
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(str(ROOT))
        assert find_spec(module)
        monkeypatch.setattr(sys, "argv", [module, *options, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        shown = capsys.readouterr().out
        assert ended.value.code == 0
        assert all(option in shown for option in options if option.startswith("--")), shown


def test_the_table_of_kernels_is_that_of_the_candidates_and_their_resources() -> None:
    """Made anew: GLIMT_TRITON=1 python -m glimt_kernels.status"""
    table = [line for line in README.splitlines() if line.startswith(("| op |", "|---|---|---", "| `"))]
    first = next(i for i, line in enumerate(table) if line.startswith("| op | CPU |"))
    expected = list(status.lines())
    assert table[first : first + len(expected)] == expected
    assert not any("broken" in line for line in expected)


def test_the_ops_that_the_engine_is_said_to_call_are_those_of_its_plans() -> None:
    ((said, also),) = re.findall(r"The engine calls ((?:`\w+`|,|\s|and)+), on a GPU, (`\w+` and `\w+`);", README)
    plan = Planner.of(read_folder(tiny.folder("t2v")), EngineConfig(device="cpu")).plan(
        GenerateRequest("x", height=32, width=48, num_frames=9, num_inference_steps=2)
    )
    assert set(re.findall(r"`(\w+)`", said)) == set(plan.implementations) - {"convolution"}
    assert set(re.findall(r"`(\w+)`", said + also)) < set(dispatch.op_names())


def test_the_commands_are_found() -> None:
    kinds = [Path(command.split()[0]).name for command in commands()]
    assert min(kinds.count(kind) for kind in ("make", "glimt", "python")) >= 3, kinds


def test_the_example_in_python_runs_and_writes_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((language, program),) = FENCE.findall(README)
    assert language == "python"
    assert program.count("seed=7)") == 1
    program = program.replace("seed=7)", "seed=7, num_inference_steps=2, num_frames=9)")  # all else is as it stands
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("StepState(", "FrameChunk(", "denoise", "decode"))
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]
    assert read_record("ball.mp4")["request"]["seed"] == 7

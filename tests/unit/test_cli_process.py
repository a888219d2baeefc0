"""The ``glimt`` command as a process: fast to answer, clean on both streams, gone when its reader is gone."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

GLIMT = [sys.executable, "-m", "glimt.cli"]


def glimt(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GLIMT, *words], capture_output=True, text=True, timeout=120)


def test_help_is_instant_and_complete():
    """Processor time, which other work on the machine does not lengthen much, of a whole process."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = glimt("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.3
    assert ran.returncode == 0
    assert all(name in ran.stdout for name in ("generate", "plan", "models", "info", "reproduce", "exit codes"))
    assert ran.stderr == ""


@pytest.mark.parametrize("command", ["generate", "plan", "models", "info", "reproduce"])
def test_every_command_has_help(command, capsys):
    from glimt.cli import main

    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_help_and_mistakes_import_nothing_heavy():
    program = """
import sys
from glimt.cli import main
assert main(["generate", "--help"]) == 0
assert main(["generate", "x", "--nonsense", "-o", "a.mp4"]) == 2
heavy = {"torch", "numpy", "rich", "av", "PIL", "transformers", "glimt_kernels"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_mistake_is_one_message_and_code_2():
    ran = glimt("generate", "x", "-o", "a.mp4", "--stepz", "3")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--steps" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_json_is_exactly_one_object_also_for_a_mistake():
    ran = glimt("generate", "x", "--json")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["error"]["kind"] == "UsageError"


def test_version():
    ran = glimt("--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("glimt ")


def test_a_reader_that_leaves_ends_the_command_quietly():
    with subprocess.Popen([*GLIMT, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 141
    assert errors == ""


def test_info_names_every_implementation_and_why_others_are_absent():
    ran = glimt("info", "--json")
    assert ran.returncode == 0, ran.stderr
    info = json.loads(ran.stdout)
    assert {"python", "torch"} <= set(info["versions"])
    assert info["devices"][0]["device"] == "cpu"
    rows = info["implementations"]["cpu float32"]
    for op, form in {(row["op"], row["form"]) for row in rows}:
        assert sum(row["chosen"] for row in rows if (row["op"], row["form"]) == (op, form)) == 1
    assert all(set(row) == {"op", "form", "impl", "chosen", "reasons"} for row in rows)
    assert all(bool(row["reasons"]) != row["chosen"] for row in rows if row["op"] != "convolution")
    assert {"linear", "convolution"} <= {row["op"] for row in rows}
    assert sum(row["chosen"] for row in info["instruction_sets"]) == 1


def test_info_agrees_with_the_plan_on_what_runs(capsys):
    from glimt.cli import main

    found = []
    for words in (["info"], ["plan", "a ball", "--device", "cpu"]):
        assert main([*words, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    info, plan = found
    chosen = {row["op"]: row["impl"] for row in info["implementations"]["cpu float32"] if row["chosen"]}
    assert {"linear", "convolution"} <= set(plan["implementations"])
    assert plan["implementations"].items() <= chosen.items()

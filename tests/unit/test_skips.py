"""The account of skipped tests (tests/conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EXPECTED_SKIPS, unexpected_skips

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def test_expected_skips_are_quiet_up_to_their_number() -> None:
    reason, most = next(iter(EXPECTED_SKIPS.items()))
    assert unexpected_skips({}) == []
    assert unexpected_skips({f"{reason}: none here": ["test"] * most}) == []
    assert len(unexpected_skips({reason: ["test"] * (most + 1)})) == 1


def test_unknown_and_missing_reasons_are_named() -> None:
    assert "'the moon is full'" in unexpected_skips({"the moon is full": ["test_a"]})[0]
    assert len(unexpected_skips({"": ["test_a"], "unconditional skip": ["test_b"]})) == 2


def run(folder: Path, test: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_it.py").write_text(f"import pytest\n\n{test}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", ".", *options]
    settings = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)


def test_in_ci_an_unexpected_skip_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it():\n    pytest.skip('tired')", "-q", CI="1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "unexpected skip: 1 skipped for 'tired'" in done.stdout


def test_make_test_says_one_line_when_all_is_as_expected(tmp_path: Path) -> None:
    reason = next(iter(EXPECTED_SKIPS))
    test = f"""
def test_that_passes():
    pass

def test_that_is_skipped():
    pytest.skip({reason!r})
"""
    lines = (CONFTEST.parents[1] / "Makefile").read_text(encoding="utf-8").splitlines()
    (command,) = (line for line in lines if "-m pytest" in line)
    options = command.partition("-m pytest ")[2].replace("$(PYTEST_ARGS)", "").split()
    (line,) = run(tmp_path, test, *options).stdout.strip().splitlines()
    assert line.startswith("1 passed, 1 skipped in ")
    asked = run(tmp_path, test + "\ndef test_that_fails():\n    assert 0", *options, "-vv").stdout
    assert "test_that_passes PASSED" in asked and reason in asked
    assert "FAILED test_it.py::test_that_fails" in asked

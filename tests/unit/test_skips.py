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


def test_in_ci_an_unexpected_skip_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_it():\n    pytest.skip('tired')\n", encoding="utf-8"
    )
    environment = {**os.environ, "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "unexpected skip: 1 skipped for 'tired'" in done.stdout

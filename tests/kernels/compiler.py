"""The CUDA compiler of the tests, and the headers of CUTLASS."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def find_nvcc() -> str:
    """The nvcc that a build here takes: the one on PATH, else that of the wheel; without one the test is skipped."""
    finder = [sys.executable, str(ROOT / "cmake/wheel_nvcc.py")]
    found = shutil.which("nvcc") or subprocess.run(finder, capture_output=True, text=True, check=True).stdout
    if not found:
        pytest.skip("needs nvcc")
    return found


def find_cutlass() -> str:
    """The headers of CUTLASS that a build here takes; without them the test is skipped."""
    finder = [sys.executable, str(ROOT / "cmake/wheel_cutlass.py")]
    found = subprocess.run(finder, capture_output=True, text=True, check=True).stdout
    if not found:
        pytest.skip("needs CUTLASS: pip install --no-deps nvidia-cutlass")
    return found

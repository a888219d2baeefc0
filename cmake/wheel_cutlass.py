"""Prints where the wheel nvidia-cutlass has installed the headers of CUTLASS for this Python, or nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def wheel_cutlass() -> str:
    """The folder that has ``cutlass/cutlass.h``; empty without one."""
    spec = importlib.util.find_spec("cutlass_library")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "source/include"
        if (folder / "cutlass/cutlass.h").exists():
            return str(folder)
    return ""


if __name__ == "__main__":
    sys.stdout.write(wheel_cutlass())

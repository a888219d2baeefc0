"""Prints the nvcc that the wheel nvidia-cuda-nvcc has installed for this Python, or nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def wheel_nvcc() -> str:
    """The newest, where there are several; empty without one."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or []) if spec else []
    found = sorted(str(nvcc) for root in roots for nvcc in Path(root).glob("cu*/bin/nvcc"))
    return found[-1] if found else ""


if __name__ == "__main__":
    sys.stdout.write(wheel_nvcc())

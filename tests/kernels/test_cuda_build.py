"""CUDA kernels, as far as they can be proved without a GPU: they compile for every chip, and nothing spills."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from compiler import find_nvcc

from glimt_kernels import _native

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels/glimt_kernels"
# Element-wise ones; convolutions have a table (test_cuda_resources.py).
SOURCES = sorted(path for path in KERNELS.rglob("*.cu") if path.parent.name != "causal_conv3d")
CHIPS = ["80", "86", "89", "90a", "100", "120"]
# Registers a thread may use before fewer than 12 blocks of 128 threads fit on a multiprocessor (64 K registers).
MOST_REGISTERS = 40


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_resources(source: Path, chip: str, tmp_path: Path) -> None:
    command = [
        find_nvcc(),
        "-cubin",
        f"-arch=sm_{chip}",
        "-std=c++17",
        "-O3",
        "-Xptxas",
        "-v",
        "-o",
        str(tmp_path / "k.cubin"),
    ]
    command += [f"-I{ROOT / 'csrc'}", f"-I{KERNELS}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stderr
    used = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    spilled = [int(number) for number in re.findall(r"(\d+) bytes spill", report)]
    assert used, report
    assert max(used) <= MOST_REGISTERS, report
    assert not any(spilled), report


def test_the_module_says_which_chips_it_has_kernels_for() -> None:
    assert set(_native.cuda_archs().split()) in ({*CHIPS}, set(), {"80", "86", "89", "90a"})
    assert _native.causal_conv3d_archs() in ("", _native.cuda_archs())

"""What every shipped Triton kernel costs on every chip: the committed table, and a sample of it compiled again."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from glimt_kernels import aot
from glimt_kernels.triton_env import ABSENT

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

TABLE = aot.read_table()
BUILDS = {(build.op, build.case, arch): build for build in aot.builds() for arch in build.archs}
# Compiled in every run: element-wise, matrix and asynchronous kernels, each on a chip of another kind. All of them:
# GLIMT_TRITON=1 python -m glimt_kernels.aot
SAMPLE = [("ada_norm", 89), ("frames_to_nv12", 120), ("qk_norm_rope", 80), ("attention", 90)]


def test_every_shipped_configuration_has_a_row_and_every_row_is_shipped() -> None:
    assert set(TABLE) == set(BUILDS)


def test_no_row_spills_or_exceeds_its_chip_or_lacks_an_instruction() -> None:
    wrong = {key: aot.faults(BUILDS[key], row) for key, row in TABLE.items()}
    assert {key: found for key, found in wrong.items() if found} == {}


@pytest.mark.parametrize(("op", "arch"), SAMPLE)
def test_what_is_compiled_now_is_no_worse_than_the_table(op: str, arch: int) -> None:
    """In a process of its own: in this one Triton interprets."""
    around = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "glimt_kernels.aot", "--op", op, "--arch", str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, env={**around, "GLIMT_TRITON": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == sum(key[0] == op and key[2] == arch for key in BUILDS)


def test_a_worse_row_is_named_with_both_numbers() -> None:
    row = next(iter(TABLE.values()))
    assert aot.worse(row, row) == []
    grown = dataclasses.replace(row, registers=2 * row.registers + 3)
    assert aot.worse(grown, row) == [f"registers {grown.registers}, was {row.registers}"]


def test_a_spill_is_a_fault() -> None:
    key, row = next(iter(TABLE.items()))
    assert aot.faults(BUILDS[key], dataclasses.replace(row, stack_bytes=8)) == [
        "spills: 8 bytes of stack, 0 of local memory"
    ]

"""What every shipped Triton kernel costs on every chip: the committed tables, and a sample of them compiled again."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glimt_kernels import aot, resources
from glimt_kernels.resources import TABLES, Key, Row
from glimt_kernels.triton_env import ABSENT, Build

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
VERSIONS = list(TABLES)
TABLE_OF = {version: resources.read_table(path) for version, path in TABLES.items()}
TABLE = TABLE_OF["3.7.1"]
BUILDS: dict[Key, Build] = {(build.op, build.case, arch): build for build in aot.builds() for arch in build.archs}
# Compiled in every run: element-wise, matrix and asynchronous kernels, each on a chip of another kind. All of them:
# make aot, make aot-3.6
SAMPLE = [
    ("3.7.1", "ada_norm", 89),
    ("3.7.1", "frames_to_nv12", 120),
    ("3.7.1", "qk_norm_rope", 80),
    ("3.7.1", "attention", 90),
    ("3.7.1", "upsample_conv", 86),
    ("3.6.0", "guidance_step", 86),
    ("3.6.0", "qk_norm_rope", 120),
    ("3.6.0", "chunk_attention", 100),
]
# Ops with matrix instructions; all others are element-wise.
MATRIX_OPS = {build.op for build in BUILDS.values() if build.needs}


def row_like(**changes: object) -> Row:
    return dataclasses.replace(next(iter(TABLE.values())), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_shipped_configuration_has_a_row_and_every_row_is_shipped(version: str) -> None:
    assert set(TABLE_OF[version]) == set(BUILDS)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_row_spills_or_exceeds_its_chip_or_lacks_an_instruction(version: str) -> None:
    wrong = {key: resources.faults(BUILDS[key], row) for key, row in TABLE_OF[version].items()}
    assert {key: found for key, found in wrong.items() if found} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_counts_everything(version: str) -> None:
    """Else nothing would be compared: a row from before a column was added needs --write."""
    counts = ("narrow_loads", "narrow_stores", "tma")
    assert [key for key, row in TABLE_OF[version].items() if None in [getattr(row, name) for name in counts]] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_rows_show_matrix_instructions_tma_and_wide_accesses_where_promised(version: str) -> None:
    """Read from the rows, whatever the builds themselves ask for."""
    for (op, case, arch), row in TABLE_OF[version].items():
        what = f"{op} {case} sm_{arch}"
        if op not in MATRIX_OPS:
            assert BUILDS[row.key].wide, what
            assert row.wide_loads and row.wide_stores, what
            assert row.mma == 0, what
            continue
        without = op in ("attention", "sparse_attention") and case.startswith("fp32")  # TF32 would not keep the budget
        assert (row.mma > 0) != without, what
        assert without or BUILDS[row.key].needs[arch], what
        if op in ("attention", "chunk_attention"):
            tuned = case.split()[1].rstrip(",") in ("64", "128") and not without and "no TMA" not in case
            assert bool(row.tma) == (tuned and arch in (90, 100)), what


def test_which_ops_have_matrix_instructions() -> None:
    assert {"attention", "chunk_attention", "linear_w8a8", "linear_w8", "causal_conv3d"} <= MATRIX_OPS
    assert "rms_norm_silu" not in MATRIX_OPS
    assert not MATRIX_OPS & {"ada_norm", "qk_norm_rope", "qk_norm_rope_8bit", "guidance_step", "quantize_rows"}


def python_with(version: str) -> str:
    """An interpreter that has this Triton."""
    if version == "3.7.1":
        return sys.executable
    found = ROOT / ".venv-triton36/bin/python"
    if not found.exists():
        pytest.skip("needs .venv-triton36 (make unit makes it)")
    return str(found)


@pytest.mark.parametrize(("version", "op", "arch"), SAMPLE)
def test_what_is_compiled_now_is_no_worse_than_the_table(version: str, op: str, arch: int) -> None:
    """In a process of its own: in this one Triton interprets."""
    around = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [python_with(version), "-m", "glimt_kernels.aot", "--op", op, "--arch", str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, env={**around, "GLIMT_TRITON": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == sum(key[0] == op and key[2] == arch for key in BUILDS)


def test_a_triton_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no table for Triton 3\.5\.0, only for 3\.7\.1, 3\.6\.0: .*TABLES"):
        resources.table_of("3.5.0")


def test_a_worse_row_is_named_with_both_numbers() -> None:
    row = row_like(registers=80, wide_loads=4, narrow_loads=1, tma=2)
    assert resources.worse(row, row) == []
    changed = {
        "registers": (163, "registers 163, was 80"),
        "narrow_loads": (9, "narrow_loads 9, was 1"),
        "wide_loads": (0, "wide_loads 0, was 4"),
        "tma": (0, "tma 0, was 2"),
    }
    for name, (now, says) in changed.items():
        assert resources.worse(dataclasses.replace(row, **{name: now}), row) == [says]
    assert resources.worse(dataclasses.replace(row, registers=88), row) == []  # within the tolerance
    assert resources.worse(row, dataclasses.replace(row, tma=None, narrow_loads=None)) == []  # not counted then


def test_a_spill_is_a_fault() -> None:
    row = row_like(stack_bytes=8)
    assert resources.faults(BUILDS[row.key], row) == ["spills: 8 bytes of stack, 0 of local memory"]


def test_a_row_gets_worse_only_with_a_note(tmp_path: Path) -> None:
    was = row_like(registers=80)
    now, build = dataclasses.replace(was, registers=99), BUILDS[was.key]
    known = {was.key: was}
    refused = ["registers 99, was 80", "not written: say why with --note"]
    assert aot._take(build, now, known, "") == refused
    assert known == {was.key: was}
    assert aot._take(build, now, known, "a second tile in flight") == []
    assert known[was.key].note == "registers 99, was 80: a second tile in flight"
    assert aot._take(build, now, known, "") == []
    assert known[was.key].note == "registers 99, was 80: a second tile in flight"  # nothing changed since
    assert aot._take(build, was, known, "") == []
    assert known[was.key].note == ""  # it is as good as before
    resources.write_table(tmp_path / "table", known)
    assert resources.read_table(tmp_path / "table") == known


def test_a_table_that_got_worse_by_hand_is_noticed() -> None:
    was = row_like(registers=80, note="an old one")
    now = dataclasses.replace(was, registers=99)
    assert resources.unexplained({was.key: now}, {was.key: was}) == {was.key: ["registers 99, was 80"]}
    assert resources.unexplained({was.key: dataclasses.replace(now, note="")}, {was.key: was})
    assert resources.unexplained({was.key: dataclasses.replace(now, note="a new one")}, {was.key: was}) == {}
    assert resources.unexplained({was.key: now}, {}) == {}


def git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the history of this repository: {done.stderr.strip()}")
    return done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_no_row_is_worse_than_in_the_commits_before_without_a_note(version: str) -> None:
    """The table as it is against its last commit, and that against the one before."""
    path = TABLES[version].relative_to(ROOT).as_posix()
    commits = git("log", "-2", "--format=%H", "--", path).split()
    states = [TABLE_OF[version], *(resources.parse(git("show", f"{commit}:{path}")) for commit in commits)]
    for rows, before in itertools.pairwise(states):
        assert resources.unexplained(rows, before) == {}


def test_the_summary_has_a_line_for_each_op_and_the_worst_of_its_rows() -> None:
    lines = resources.markdown(TABLE.values()).splitlines()
    ops = sorted({key[0] for key in TABLE})
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == ops
    most = max(row.registers for key, row in TABLE.items() if key[0] == "attention" and key[2] == 90)
    cell = next(line for line in lines if line.startswith("| attention |")).split(" | ")[5]
    assert cell.startswith(f"{most} / ")

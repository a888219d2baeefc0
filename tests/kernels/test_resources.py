"""What every shipped Triton kernel costs on every chip: the committed tables, and a sample of them compiled again."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glimt_kernels import aot, resources
from glimt_kernels.attention import triton
from glimt_kernels.digest import digest_of
from glimt_kernels.resources import TABLES, Key, Row
from glimt_kernels.triton_env import ABSENT, Build

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
VERSIONS = list(TABLES)
TABLE_OF = {version: resources.read_table(path) for version, path in TABLES.items()}
TABLE = TABLE_OF["3.7.1"]
BUILDS: dict[Key, Build] = {(build.op, build.case, arch): build for build in aot.builds() for arch in build.archs}
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
        without = op.endswith("attention") and case.startswith("fp32")  # TF32 would not keep the budget
        assert (row.mma > 0) != without, what
        assert without or BUILDS[row.key].needs[arch], what
        if op in ("attention", "chunk_attention"):
            tuned = case.split()[1].rstrip(",") in ("64", "128") and not without and "no TMA" not in case
            assert bool(row.tma) == (tuned and arch in (90, 100)), what


def test_which_ops_have_matrix_instructions() -> None:
    assert {"attention", "chunk_attention", "linear_w8a8", "linear_w8", "causal_conv3d"} <= MATRIX_OPS
    assert "rms_norm_silu" not in MATRIX_OPS
    assert not MATRIX_OPS & {"ada_norm", "qk_norm_rope", "qk_norm_rope_8bit", "guidance_step", "quantize_rows"}


def run_aot(version: str, *options: str) -> tuple[int, list[str], str]:
    """(exit status, lines of stdout, stderr) in a process with this Triton; in this one Triton interprets."""
    python = sys.executable if version == "3.7.1" else str(ROOT / ".venv-triton36/bin/python")
    if not Path(python).exists():
        pytest.skip("needs .venv-triton36 (make unit makes it)")
    around = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [python, "-m", "glimt_kernels.aot", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**around, "GLIMT_TRITON": "1"}, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_is_of_the_sources_as_they_are(version: str) -> None:
    """By the digests: nothing is compiled."""
    code, lines, errors = run_aot(version, "--stale")
    assert (code, lines) == (0, [f"{len(BUILDS)} rows, 0 of other sources"]), errors


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_compiled_now_is_no_worse_than_the_table(version: str) -> None:
    """One row of each op, another when its kernel changes; all of them: make aot, make aot-3.6."""
    code, lines, errors = run_aot(version, "--sample")
    assert code == 0, "\n".join([*lines, errors])
    assert {json.loads(line)["op"] for line in lines} == {op for op, _, _ in BUILDS}


def test_the_sample_has_one_row_of_each_op_and_moves_with_the_source() -> None:
    pairs = [(build, arch) for (_, _, arch), build in BUILDS.items()]
    chosen = aot.sample(pairs)
    assert sorted(build.op for build, _ in chosen) == sorted({build.op for build, _ in pairs})
    others = {
        aot.key_of(*aot.sample([(dataclasses.replace(build, num_stages=n), arch) for build, arch in pairs])[0])
        for n in range(10)
    }
    assert len(others) > 3


# What a row depends on: a change of the build, each alone.
CHANGES: dict[str, Callable[[Build], Build]] = {
    "warps": lambda build: dataclasses.replace(build, num_warps=2 * build.num_warps),
    "stages": lambda build: dataclasses.replace(build, num_stages=build.num_stages + 1),
    "constant": lambda build: dataclasses.replace(build, constants={**build.constants, "BLOCK_N": 48}),
    "type": lambda build: dataclasses.replace(build, signature={**build.signature, "q_token": "i32"}),
    "kernel": lambda build: dataclasses.replace(build, kernel=triton.attend),
    "needs": lambda build: dataclasses.replace(build, needs=dict.fromkeys(build.archs, ("DMMA",))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_build_has_another_digest(change: str) -> None:
    build = next(build for build in triton.BUILDS if 90 in build.archs)
    digest = digest_of(build, 90)
    assert digest == digest_of(dataclasses.replace(build, case="another name"), 90)
    assert digest_of(CHANGES[change](build), 90) != digest


KERNEL = """
import triton
import triton.language as tl

STEP = tl.constexpr(4)

@triton.jit
def inner(x):
    return x * 2.0

@triton.jit
def middle(x):
    return inner(x) + STEP

@triton.jit
def kernel(x, N: tl.constexpr):
    tl.store(x, middle(tl.load(x)))
"""


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        ("x * 2.0", "x * 3.0", False),  # two calls away
        ("constexpr(4)", "constexpr(5)", False),
        ("middle(tl.load(x))", "inner(tl.load(x))", False),
        ("    return inner", "    # why\n    return inner", True),
        ("def inner(x):\n", 'def inner(x):\n    """Twice."""\n', True),
        ("x * 2.0", "(x  *  2.0)", True),
        ("STEP = ", "OTHER = tl.constexpr(7)\nSTEP = ", True),
    ],
)
def test_the_digest_is_of_all_that_is_called_and_of_no_comment(old: str, new: str, alike: bool, tmp_path: Path) -> None:
    assert KERNEL.count(old) == 1
    texts = {}
    for name, text in (("before", KERNEL), ("after", KERNEL.replace(old, new))):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        texts[name] = digest_of(Build("op", "case", module.kernel, {"x": "*fp32"}, {"N": 1}), 80)
    assert (texts["before"] == texts["after"]) == alike


def test_constants_are_text_and_one_that_has_none_is_refused() -> None:
    one, two = (digest_of(Build("op", "case", triton.absorb, {}, {"N": (1, n)}), 80) for n in (1, 2))
    assert one != two
    for value in (object(), (1, object())):
        with pytest.raises(TypeError, match="no constants like N: object"):
            digest_of(Build("op", "case", triton.absorb, {}, {"N": value}), 80)


def test_rows_of_other_sources_are_named_and_another_table_gives_those_that_fit() -> None:
    pair = next((build, arch) for (_, _, arch), build in BUILDS.items())
    key, digest = aot.key_of(*pair), digest_of(*pair)
    fits, old, none = (row_like(digest=text, registers=n) for text, n in ((digest, 1), ("old", 2), ("", 3)))
    assert (fits.op, fits.case, fits.arch) == key
    assert aot.stale({key: fits}, [pair]) == []
    for known in ({key: old}, {key: none}, {}):
        (said,) = aot.stale(known, [pair])
        assert said.startswith(f"{key[0]} {key[1]} sm_{key[2]}: the row is not of these sources")
    for here, others, expected in (
        ({key: old}, [{key: fits}], fits),
        ({key: fits}, [{key: none}, {key: old}], fits),
        ({key: old}, [{key: none}], old),  # on nobody's word
        ({}, [{}, {key: none}], dataclasses.replace(none, digest=digest)),
        ({key: none}, [], dataclasses.replace(none, digest=digest)),
    ):
        assert aot.with_digests(here, others, [pair]) == {key: expected}
    assert aot.with_digests({}, [], [pair]) == {}
    said = aot._complaints(*pair[:1], dataclasses.replace(fits, registers=2), {key: old})
    assert len(said) == 1 and "not of these sources" in said[0]


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

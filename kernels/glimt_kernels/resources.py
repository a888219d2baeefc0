"""The committed tables of what each Triton kernel costs on each chip, and when a row of them is wrong or got worse.

``aot.py`` makes the rows. A table belongs to one version of Triton: another allots registers otherwise. A row may get
worse only with a note that says why, in the row itself (``python -m glimt_kernels.aot --write --note "..."``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from glimt_kernels.triton_env import ARCHS, Build

# Bytes of shared memory that one block may have.
SHARED_LIMIT: Mapping[int, int] = {
    arch: kib << 10 for arch, kib in ((80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99))
}
# The versions of Triton that are gated: the one of constraints.txt, and one for older stacks.
TABLES: Mapping[str, Path] = {
    version: Path(__file__).with_name(name)
    for version, name in (("3.7.1", "resources.jsonl"), ("3.6.0", "resources-3.6.jsonl"))
}
# What is counted may move by this much between builds of one compiler before a row counts as worse.
TOLERANCE = 1.10

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Row:
    """What one build costs on one chip.

    Attributes:
        op, case, arch: which build, which chip.
        registers: of a thread.
        shared_bytes: of a block.
        stack_bytes, local_bytes: not 0 where registers are spilled; the latter counts SASS LDL and STL too.
        instructions: of SASS, without NOP.
        mma: matrix instructions among them.
        other_per_mma: all others for each of these; 0 where there are none.
        wide_loads, wide_stores: of global memory, 128 bits a thread (LDG, LDGSTS, STG), or by TMA.
        missing: what ``Build.needs`` lists and SASS has not.
        narrow_loads, narrow_stores: of global memory, less than 128 bits.
        tma: tensor copies (UTMALDG, UTMASTG).
        note: why the row is worse than it was at some time.
        digest: of what was compiled (``digest.digest_of``); "" in tables from before there was one.
    """

    op: str
    case: str
    arch: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int
    instructions: int
    mma: int
    other_per_mma: float
    wide_loads: int
    wide_stores: int
    missing: str = ""
    # None in tables from before these were counted.
    narrow_loads: int | None = None
    narrow_stores: int | None = None
    tma: int | None = None
    note: str = ""
    digest: str = ""

    @property
    def key(self) -> Key:
        return self.op, self.case, self.arch


Table = dict[Key, Row]


def table_of(version: str) -> Path:
    """Where the rows of a Triton version are.

    Raises:
        ValueError: there is no table for it.
    """
    if version not in TABLES:
        raise ValueError(
            f"no table for Triton {version}, only for {', '.join(TABLES)}: run with one of these (make aot, aot-3.6)"
            ", or add the version to TABLES in glimt_kernels/resources.py and run --write"
        )
    return TABLES[version]


def parse(text: str) -> Table:
    """Rows, one a line of JSON, by op, case and chip."""
    rows = [Row(**json.loads(line)) for line in text.splitlines()]
    return {row.key: row for row in rows}


def read_table(path: Path) -> Table:
    """The rows of a file; none if there is no file yet."""
    return parse(path.read_text()) if path.exists() else {}


def write_table(path: Path, rows: Table) -> None:
    path.write_text("".join(f"{json.dumps(asdict(rows[key]))}\n" for key in sorted(rows)))


def faults(build: Build, row: Row) -> list[str]:
    """What is wrong with a row by itself."""
    wrong = []
    if row.stack_bytes or row.local_bytes:
        wrong.append(f"spills: {row.stack_bytes} bytes of stack, {row.local_bytes} of local memory")
    if row.shared_bytes > SHARED_LIMIT[row.arch]:
        wrong.append(f"{row.shared_bytes} bytes of shared memory, sm_{row.arch} has {SHARED_LIMIT[row.arch]}")
    if row.missing:
        wrong.append(f"without {row.missing}")
    if build.wide and not (row.wide_loads and row.wide_stores):
        wrong.append(f"no 128-bit access: {row.wide_loads} loads, {row.wide_stores} stores")
    return wrong


def worse(row: Row, committed: Row) -> list[str]:
    """In what a row is worse than the committed one, beyond what a compiler's mood explains."""
    found = []
    costs = ("registers", "shared_bytes", "instructions", "other_per_mma", "narrow_loads", "narrow_stores")
    for name in costs:
        now, was = getattr(row, name), getattr(committed, name)
        if now is not None and was is not None and now > max(was * TOLERANCE, was + 2):
            found.append(f"{name} {now}, was {was}")
    had = {name: getattr(committed, name) for name in ("wide_loads", "wide_stores", "tma", "mma")}
    return found + [f"{name} 0, was {was}" for name, was in had.items() if was and getattr(row, name) == 0]


def unexplained(rows: Table, before: Table) -> dict[Key, list[str]]:
    """Rows that are worse than in an earlier table and carry no note that is new since."""
    return {
        key: found
        for key, row in rows.items()
        if key in before and (found := worse(row, before[key])) and (not row.note or row.note == before[key].note)
    }


def noted(row: Row, committed: Row, note: str) -> Row:
    """``row`` as it replaces ``committed``: with the note if it is worse; an old note stays while no number changes."""
    found = worse(row, committed)
    if found:
        return replace(row, note=f"{'; '.join(found)}: {note}" if note else "")
    alike = row == replace(committed, note="", digest=row.digest)
    return replace(row, note=committed.note if alike else "")


def markdown(rows: Iterable[Row]) -> str:
    """A line per op: on each chip the most registers and shared memory, and the range of other instructions per MMA."""
    by_op: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_op.setdefault(row.op, {}).setdefault(row.arch, []).append(row)
    lines = [
        "Most registers / most KiB of shared memory / other instructions per matrix instruction (16 bits and less).",
        "",
        f"| op | builds | {' | '.join(f'sm_{arch}' for arch in ARCHS)} |",
        f"|---|---|{'---|' * len(ARCHS)}",
    ]
    for op, archs in sorted(by_op.items()):
        count = len({row.case for of_arch in archs.values() for row in of_arch})
        lines.append(f"| {op} | {count} | {' | '.join(_cell(archs.get(arch, [])) for arch in ARCHS)} |")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    shared = max(row.shared_bytes for row in rows) / 1024
    ratios = [row.other_per_mma for row in rows if row.mma and "fp32" not in row.case]
    cell = f"{max(row.registers for row in rows)} / {round(shared, 1):g}"
    return f"{cell} / {min(ratios):.0f}-{max(ratios):.0f}" if ratios else cell

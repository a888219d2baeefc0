"""Compile Triton kernels ahead of time for every chip, on any machine, and read back what each one costs.

    GLIMT_TRITON=1 python -m glimt_kernels.aot           # the table, compared with the committed one
    GLIMT_TRITON=1 python -m glimt_kernels.aot --write   # replace the committed one of this Triton version
    GLIMT_TRITON=1 python -m glimt_kernels.aot --op attention --arch 90
    GLIMT_TRITON=1 python -m glimt_kernels.aot --sample  # one row of each op, another when its kernel changes
    GLIMT_TRITON=1 python -m glimt_kernels.aot --stale   # rows of other sources than these, without compiling
    python -m glimt_kernels.aot --markdown               # the committed table, a line per op

A row per shipped configuration and chip (``resources.Row``). Spills, too much shared memory, a missing instruction that
the kernel was written for, and a row worse than the committed one are errors. ``--write`` takes a worse row only with
``--note``, which it keeps in the row. Each Triton version has a table of its own (``resources.TABLES``).

A row holds the digest of what was compiled (``digest.py``). Where branches with new rows meet, ``--digests FILE`` takes
from the other branch's table the rows that this one lacks or has of other sources, if their digest fits the sources; a
row without a digest, from before there were any, gets it there, on the word of who compiled it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from glimt_kernels import triton_env
from glimt_kernels.digest import digest_of, divisible
from glimt_kernels.resources import (
    TABLES,
    Key,
    Row,
    Table,
    faults,
    markdown,
    noted,
    read_table,
    table_of,
    worse,
    write_table,
)
from glimt_kernels.triton_env import ARCHS, Build

# Modules with a list BUILDS.
MODULES = (
    "ada_norm",
    "attention",
    "attention_8bit",
    "causal_conv3d",
    "chunk_attention",
    "frames_to_uint8",
    "guidance_step",
    "linear",
    "linear_quant",
    "norm",
    "qk_norm_rope",
    "qk_norm_rope_8bit",
    "quantize_qkv",
    "rms_norm_silu",
    "sparse_attention",
    "upsample_conv",
)


Pair = tuple[Build, int]


def builds(ops: Iterable[str] = ()) -> list[Build]:
    """Every shipped configuration, or those of some ops."""
    found = [b for name in MODULES for b in importlib.import_module(f"glimt_kernels.{name}.triton").BUILDS]
    wanted = set(ops)
    unknown = wanted - {build.op for build in found}
    if unknown:
        known = ", ".join(sorted({build.op for build in found}))
        raise ValueError(f"no builds of {', '.join(sorted(unknown))}; there are {known}")
    return [build for build in found if not wanted or build.op in wanted]


def compile_one(build: Build, arch: int) -> Any:
    """Triton's compiled kernel; its ``asm`` holds "ptx" and "cubin", its ``metadata`` the shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**build.signature, **dict.fromkeys(build.constants, "constexpr")}
    names = build.kernel.arg_names
    signature = {name: types[name] for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible(build)}
    source = ASTSource(build.kernel, signature, dict(build.constants), attrs)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def read_row(build: Build, arch: int) -> Row:
    """Compile and read back."""
    compiled = compile_one(build, arch)
    shared, needs = int(compiled.metadata.shared), build.needs.get(arch, ())
    row = row_of((build.op, build.case, arch), compiled.asm["cubin"], shared, needs)
    return replace(row, digest=digest_of(build, arch))


def row_of(key: Key, cubin: bytes, shared_bytes: int, needs: Iterable[str]) -> Row:
    """What a compiled kernel costs; ``needs``: beginnings of instructions without which it is not what was meant."""
    usage, mnemonics = _disassemble(cubin)

    def count(pattern: str) -> int:
        return sum(n for name, n in mnemonics.items() if re.match(pattern, name))

    mma, total = count(r"(H|I|Q|O|UTC[A-Z]*)G?MMA"), count(r"(?!NOP)")
    return Row(
        *key,
        registers=usage["REG"],
        shared_bytes=shared_bytes,
        stack_bytes=usage["STACK"],
        local_bytes=usage["LOCAL"] + count(r"LDL|STL"),
        instructions=total,
        mma=mma,
        other_per_mma=round((total - mma) / mma, 1) if mma else 0.0,
        wide_loads=count(r"(LDG|LDGSTS)\b.*\.128|UTMALDG"),
        wide_stores=count(r"STG\b.*\.128|UTMASTG"),
        missing=" ".join(n for n in needs if not any(name.startswith(n) for name in mnemonics)),
        narrow_loads=count(r"(LDG|LDGSTS)\b(?!.*\.128)"),
        narrow_stores=count(r"STG\b(?!.*\.128)"),
        tma=count(r"UTMALDG|UTMASTG"),
    )


def _disassemble(cubin: bytes) -> tuple[dict[str, int], Counter[str]]:
    """(resource usage by name, SASS mnemonics with their counts)."""
    import triton

    tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", sass, re.MULTILINE)
    return found, Counter(lines)


def sample(chosen: Iterable[Pair]) -> list[Pair]:
    """One of each op; which one changes with what is compiled."""
    by_op: dict[str, list[Pair]] = {}
    for pair in chosen:
        by_op.setdefault(pair[0].op, []).append(pair)
    return [
        found[zlib.crc32("".join(digest_of(*pair) for pair in found).encode()) % len(found)] for found in by_op.values()
    ]


def key_of(build: Build, arch: int) -> Key:
    return build.op, build.case, arch


def stale(known: Table, shipped: Iterable[Pair]) -> list[str]:
    """Which rows are not of the sources as they are."""
    return [
        f"{build.op} {build.case} sm_{arch}: the row is not of these sources, constants and launch options"
        f" (--op {build.op} --write compiles it)"
        for build, arch in shipped
        if (row := known.get(key_of(build, arch))) is None or row.digest != digest_of(build, arch)
    ]


def with_digests(known: Table, others: list[Table], shipped: Iterable[Pair]) -> Table:
    """The shipped rows of ``known``, else of the first other table, of any the one whose digest fits; none without."""
    rows = {}
    for pair in shipped:
        key, digest = key_of(*pair), digest_of(*pair)
        here = [table[key] for table in (known, *others) if key in table]
        if here:
            best = next((row for row in here if row.digest == digest), here[0])
            rows[key] = replace(best, digest=best.digest or digest)
    return rows


def _complaints(build: Build, row: Row, known: Table) -> list[str]:
    found = faults(build, row)
    if row.key not in known:
        return [*found, "not in the committed table (--write adds it)"]
    return found + worse(row, known[row.key]) + stale(known, [(build, row.arch)])


def _take(build: Build, row: Row, known: Table, note: str) -> list[str]:
    """Put ``row`` into ``known``, unless it is worse and nobody says why; what is wrong with it."""
    found = faults(build, row)
    if row.key in known:
        before = known[row.key]
        refused = worse(row, before) if not note else []
        if refused:
            return [*found, *refused, "not written: say why with --note"]
        row = noted(row, before, note)
    known[row.key] = row
    return found


def _version() -> str:
    import triton

    return str(triton.__version__)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glimt_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], help="only this op (may be repeated)")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHS, help="only this chip (may be repeated)")
    parser.add_argument("--case", action="append", default=[], help="only this case (may be repeated)")
    parser.add_argument("--sample", action="store_true", help="one row of each op, another when its kernel changes")
    parser.add_argument("--write", action="store_true", help="put the rows into the committed table")
    parser.add_argument("--note", default="", help="why rows get worse; with --write, kept in those rows")
    parser.add_argument("--stale", action="store_true", help="compile nothing; name the rows of other sources")
    parser.add_argument(
        "--digests", nargs="*", metavar="FILE", help="compile nothing; take rows of other tables, fill in digests"
    )
    parser.add_argument("--markdown", action="store_true", help="print the committed table, a line per op")
    parser.add_argument("--of", choices=tuple(TABLES), default=next(iter(TABLES)), help="with --markdown: whose table")
    return parser


def _compile(args: argparse.Namespace, path: Path, known: Table, chosen: list[Pair]) -> int:
    """Compile everything, one after the other; how much is wrong."""
    complaints = 0
    for build, arch in chosen:
        row = read_row(build, arch)
        wrong = _take(build, row, known, args.note) if args.write else _complaints(build, row, known)
        complaints += len(wrong)
        print(json.dumps(asdict(row)), *(f"<- {text}" for text in wrong), flush=True)
        if args.write:  # each time: all of it takes minutes, and what is done should outlast an interruption
            write_table(path, known)
    return complaints


def _compare_digests(args: argparse.Namespace, path: Path, known: Table, shipped: list[Pair]) -> int:
    """Say which rows are of other sources, after --digests has done what it can; how many they are."""
    if args.digests is not None:
        known = with_digests(known, [read_table(Path(name)) for name in args.digests], shipped)
        write_table(path, known)
    found = stale(known, shipped)
    print(*found, f"{len(shipped)} rows, {len(found)} of other sources", sep="\n")
    return len(found)


def main() -> int:
    parser = _arguments()
    args = parser.parse_args()
    if args.markdown:
        print(markdown(read_table(table_of(args.of)).values()))
        return 0
    if triton_env.ABSENT or triton_env.INTERPRETED:
        parser.error(triton_env.ABSENT or "with TRITON_INTERPRET=1 kernels are not those that are compiled: unset it")
    try:
        path, wanted = table_of(_version()), builds(args.op)
    except ValueError as error:
        parser.error(str(error))
    archs, cases = args.arch or ARCHS, args.case or {build.case for build in wanted}
    chosen = [(build, arch) for build in wanted for arch in build.archs if arch in archs and build.case in cases]
    shipped = [(build, arch) for build in builds() for arch in build.archs]
    keys = {key_of(*pair) for pair in shipped}
    known = {key: row for key, row in read_table(path).items() if key in keys}
    if args.stale or args.digests is not None:
        return 1 if _compare_digests(args, path, known, shipped) else 0
    return 1 if _compile(args, path, known, sample(chosen) if args.sample else chosen) else 0


if __name__ == "__main__":
    sys.exit(main())

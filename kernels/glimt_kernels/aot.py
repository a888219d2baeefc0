"""Compile Triton kernels ahead of time for every chip, on any machine, and read back what each one costs.

    GLIMT_TRITON=1 python -m glimt_kernels.aot           # the table, compared with the committed one
    GLIMT_TRITON=1 python -m glimt_kernels.aot --write   # replace the committed one, resources.jsonl
    GLIMT_TRITON=1 python -m glimt_kernels.aot --op attention --arch 90

A row per shipped configuration and chip: registers, shared memory, stack and local memory (a spill shows as either),
SASS instructions, matrix instructions, others per matrix instruction, and 128-bit loads and stores. Spills, too much
shared memory, a missing instruction that the kernel was written for, and a row worse than the committed one are errors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glimt_kernels import triton_env
from glimt_kernels.triton_env import ARCHS, Build

# Bytes of shared memory that one block may have.
SHARED_LIMIT: Mapping[int, int] = {
    arch: kib << 10 for arch, kib in ((80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99))
}
TABLE = Path(__file__).with_name("resources.jsonl")
# Modules with a list BUILDS.
MODULES = (
    "ada_norm",
    "attention",
    "attention_8bit",
    "chunk_attention",
    "frames_to_uint8",
    "guidance_step",
    "linear",
    "linear_quant",
    "norm",
    "qk_norm_rope",
    "qk_norm_rope_8bit",
    "quantize_qkv",
    "sparse_attention",
)
# Registers and instructions may move by this much between compiler versions before a row counts as worse.
TOLERANCE = 1.10


@dataclass(frozen=True)
class Row:
    """What one build costs on one chip."""

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

    @property
    def key(self) -> tuple[str, str, int]:
        return self.op, self.case, self.arch


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
    attrs = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or signature[name] == "i64"
    }
    source = ASTSource(build.kernel, signature, dict(build.constants), attrs)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def read_row(build: Build, arch: int) -> Row:
    """Compile and read back."""
    compiled = compile_one(build, arch)
    usage, mnemonics = _disassemble(compiled.asm["cubin"])
    mma = sum(n for name, n in mnemonics.items() if re.match(r"(H|I|Q|O|UTC[A-Z]*)G?MMA", name))
    total = sum(n for name, n in mnemonics.items() if not name.startswith("NOP"))
    return Row(
        op=build.op,
        case=build.case,
        arch=arch,
        registers=usage["REG"],
        shared_bytes=int(compiled.metadata.shared),
        stack_bytes=usage["STACK"],
        local_bytes=usage["LOCAL"] + sum(n for name, n in mnemonics.items() if name.startswith(("LDL", "STL"))),
        instructions=total,
        mma=mma,
        other_per_mma=round((total - mma) / mma, 1) if mma else 0.0,
        wide_loads=sum(n for name, n in mnemonics.items() if re.match(r"(LDG|LDGSTS)\b.*\.128|UTMALDG", name)),
        wide_stores=sum(n for name, n in mnemonics.items() if re.match(r"STG\b.*\.128|UTMASTG", name)),
        missing=" ".join(n for n in build.needs.get(arch, ()) if not any(name.startswith(n) for name in mnemonics)),
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
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    return found, Counter(lines)


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
    names = ("registers", "shared_bytes", "instructions", "other_per_mma")
    pairs = [(name, getattr(row, name), getattr(committed, name)) for name in names]
    return [f"{name} {now}, was {was}" for name, now, was in pairs if now > max(was * TOLERANCE, was + 2)]


def read_table(path: Path = TABLE) -> dict[tuple[str, str, int], Row]:
    """The committed rows by op, case and chip."""
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    return {row.key: row for row in rows}


def survey(chosen: Iterable[Build], archs: Iterable[int]) -> Iterator[tuple[Build, Row]]:
    """Compile everything, one after the other."""
    wanted = set(archs)
    for build in chosen:
        for arch in build.archs:
            if arch in wanted:
                yield build, read_row(build, arch)


def _complaints(build: Build, row: Row, known: Mapping[tuple[str, str, int], Row]) -> list[str]:
    found = faults(build, row)
    if row.key not in known:
        return [*found, "not in the committed table (--write adds it)"]
    return found + worse(row, known[row.key])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m glimt_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", default=[], help="only this op (may be repeated)")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHS, help="only this chip (may be repeated)")
    parser.add_argument("--write", action="store_true", help="put the rows into the committed table")
    args = parser.parse_args()
    if triton_env.ABSENT:
        parser.error(triton_env.ABSENT)
    known, complaints = read_table(), 0
    for build, row in survey(builds(args.op), args.arch or ARCHS):
        wrong = faults(build, row) if args.write else _complaints(build, row, known)
        complaints += len(wrong)
        known[row.key] = row
        print(json.dumps(asdict(row)), *(f"<- {text}" for text in wrong), flush=True)
    if args.write:
        lines = [json.dumps(asdict(known[key])) for key in sorted(known)]
        TABLE.write_text("".join(f"{line}\n" for line in lines))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

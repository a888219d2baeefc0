"""Compiles the CUDA convolutions for every chip and compares what they cost with a committed table. No GPU is needed.

    make aot-cuda                                                         # all
    python -m glimt_kernels.aot_cuda --case hopper_96                     # one file
    python -m glimt_kernels.aot_cuda --write [--note "why it got worse"]  # renew the table

The table (``resources-cuda.jsonl``) begins with what it was made from: a digest of the sources, and the versions of
nvcc and CUTLASS. Tests compare the digest in every run, so a change of a kernel is not left without new rows, and
compile one file of each family again. It needs nvcc, the headers of CUTLASS, and Triton's disassembler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

from glimt_kernels.aot import row_of
from glimt_kernels.native import ABSENT, lib
from glimt_kernels.resources import Row, Table, faults, noted, parse, worse
from glimt_kernels.triton_env import Build

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "causal_conv3d"
TABLE = PACKAGE / "resources-cuda.jsonl"
OP = "causal_conv3d"
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-cubin")
_AMPERE = ("HMMA.16816.F32.BF16", "LDGSTS", "LDSM.16.M88.4")
_HOPPER = ("UTMALDG.5D.IM2COL", "UTMALDG.4D", "USETMAXREG")


def _build(case: str, archs: tuple[int, ...], needs: tuple[str, ...]) -> Build:
    return Build(OP, case, None, {}, {}, archs=archs, needs=dict.fromkeys(archs, needs), wide=True)


# A file each.
BUILDS = (
    _build("ampere_96", (80, 86, 89, 100, 120), _AMPERE),
    _build("ampere_192", (80, 86, 89, 100, 120), _AMPERE),
    _build("hopper_96", (90,), ("HGMMA.64x96x16.F32.BF16", *_HOPPER)),
    _build("hopper_192", (90,), ("HGMMA.64x192x16.F32.BF16", *_HOPPER)),
)


class MissingToolError(RuntimeError):
    """nvcc, CUTLASS or the sources are not there."""


def sources() -> list[Path]:
    """All that a kernel is compiled from, but for CUTLASS."""
    root = PACKAGE.parents[1]
    return [root / "csrc/cuda/device.h", *sorted(p for p in FOLDER.iterdir() if p.suffix in (".h", ".cuh", ".cu"))]


def digest() -> str:
    """Of names and texts of the sources."""
    found = hashlib.sha256()
    for path in sources():
        found.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@cache
def tools() -> tuple[str, str]:
    """(nvcc, the folder of CUTLASS's headers), as a build finds them (cmake/).

    Raises:
        MissingToolError: one is not there.
    """
    cmake = PACKAGE.parents[1] / "cmake"

    def ask(name: str) -> str:
        done = subprocess.run([sys.executable, str(cmake / name)], capture_output=True, text=True, check=True)
        return done.stdout

    if not cmake.exists():
        raise MissingToolError(f"the sources are not there ({cmake}): run this in a clone of the repository")
    nvcc, cutlass = shutil.which("nvcc") or ask("wheel_nvcc.py"), ask("wheel_cutlass.py")
    if not nvcc:
        raise MissingToolError('needs nvcc on PATH, or: pip install "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]"')
    if not cutlass:
        raise MissingToolError("needs the headers of CUTLASS: pip install --no-deps nvidia-cutlass")
    return nvcc, cutlass


def versions() -> dict[str, str]:
    """Of what the rows depend on beside the sources."""
    said = subprocess.run([tools()[0], "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return {"nvcc": found[1] if found else "unknown", "cutlass": importlib.metadata.version("nvidia-cutlass")}


def compile_one(case: str, arch: int) -> bytes:
    """The cubin of one file for one chip. Raises RuntimeError with what nvcc said where it failed."""
    nvcc, cutlass = tools()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "k.cubin"
        includes = [f"-I{PACKAGE.parents[1] / 'csrc'}", f"-I{PACKAGE}", "-isystem", cutlass]
        chip = f"-arch=sm_{arch}{'a' if arch == 90 else ''}"
        command = [nvcc, *FLAGS, chip, *includes, "-o", str(cubin), str(FOLDER / f"{case}.cu")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nvcc on {case}.cu for sm_{arch}: {done.stderr}")
        return cubin.read_bytes()


def read_row(build: Build, arch: int) -> Row:
    """Compile and read back; shared memory is what the launch asks for."""
    out = int(build.case.partition("_")[2])
    sizes = (1, 1, 0, 1, 1, 96, out, 0, 0, 0, 0, 0, 0)
    shared = lib.causal_conv3d_tiling(sizes, arch == 90)[4]
    return row_of((OP, build.case, arch), compile_one(build.case, arch), shared, build.needs[arch])


def read_table(path: Path = TABLE) -> tuple[dict[str, str], Table]:
    """(what the rows were made from, the rows); both empty without a file."""
    if not path.exists():
        return {}, {}
    head, _, rows = path.read_text().partition("\n")
    return json.loads(head), parse(rows)


def write_table(rows: Table, path: Path = TABLE) -> None:
    lines = [{"sources": digest(), **versions()}, *(asdict(rows[key]) for key in sorted(rows))]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def survey(cases: list[str], archs: list[int]) -> Iterator[tuple[Build, Row]]:
    """Compile those files for those chips (all, where none are named), one after the other."""
    for build in BUILDS:
        for arch in build.archs:
            if (not cases or build.case in cases) and (not archs or arch in archs):
                yield build, read_row(build, arch)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glimt_kernels.aot_cuda", description=__doc__.splitlines()[0])
    cases, chips = [build.case for build in BUILDS], sorted({arch for build in BUILDS for arch in build.archs})
    parser.add_argument("--case", action="append", default=[], choices=cases, help="only this file (may be repeated)")
    parser.add_argument("--arch", action="append", type=int, default=[], choices=chips, help="only this chip")
    parser.add_argument("--write", action="store_true", help="put the rows into the committed table")
    parser.add_argument("--note", default="", help="why rows get worse; with --write, kept in those rows")
    return parser


def main() -> int:
    parser = _arguments()
    args = parser.parse_args()
    if ABSENT:
        parser.error(ABSENT)
    try:
        tools()
    except MissingToolError as error:
        parser.error(str(error))
    made_from, known = read_table()
    fresh, complaints = {}, 0
    for build, row in survey(args.case, args.arch):
        wrong = faults(build, row)
        before = known.get(row.key)
        if before is None:
            wrong += [] if args.write else ["not in the committed table (--write adds it)"]
        elif not args.note:
            wrong += worse(row, before)
        else:
            row = noted(row, before, args.note)
        fresh[row.key] = row
        complaints += len(wrong)
        print(json.dumps(asdict(row)), *(f"<- {text}" for text in wrong), flush=True)
    whole = {(OP, build.case, arch) for build in BUILDS for arch in build.archs}
    if args.write and complaints == 0:
        if set(fresh) != whole and made_from.get("sources") != digest():
            parser.error("the sources have changed since the table was made: --write needs all files and all chips")
        write_table({**known, **fresh})
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

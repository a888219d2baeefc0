"""Manifests for the tests: of the real rules, with cubins that are none, and the C++ reader of them as a process."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from glimt_kernels.manifest.forms import forms
from glimt_kernels.manifest.launch import Launch
from glimt_kernels.manifest.spec import Argument, Axis, Cubin, Kernel, Manifest
from glimt_kernels.manifest.text import dump

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = sorted((ROOT / "csrc/manifest").glob("*.cpp"))
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
_HOME = TemporaryDirectory(prefix="glimt-manifests-")


def cubin(target: str, file: str, content: bytes = b"") -> Cubin:
    digest = hashlib.sha256(content).hexdigest()
    return Cubin(target, file, len(content), digest, digest[:16], 40, 1024, 4, "_kernel")


def with_cubins(kernel: Kernel, targets: Sequence[str] = ("sm_80", "sm_90a")) -> Kernel:
    made = (
        cubin(t, f"{kernel.op}-{kernel.case}.{t}.cubin", f"{kernel.op} {kernel.case} {t}".encode()) for t in targets
    )
    return dataclasses.replace(kernel, cubins=tuple(made))


def example(shape: tuple[int, int] = (4, 64)) -> Manifest:
    """Every op in bf16."""
    return Manifest("triton 3.7.1", tuple(with_cubins(form.kernel) for form in forms(shapes=[shape], dtypes=["bf16"])))


def write_folder(folder: Path, manifest: Manifest) -> Path:
    """The manifest, and files that fit :func:`with_cubins`."""
    folder.mkdir(parents=True)
    (folder / "kernels.manifest").write_bytes(dump(manifest))
    for kernel in manifest.kernels:
        for each in kernel.cubins:
            (folder / each.file).write_bytes(f"{kernel.op} {kernel.case} {each.target}".encode())
    return folder


def rendered(manifest: Manifest) -> str:
    """What the probe writes of a manifest: as its text, with pointers all alike and numbers as C++ prints them."""
    lines = [f"compiler {manifest.compiler}", f"digest {hashlib.sha256(dump(manifest)).hexdigest()}"]
    for k in manifest.kernels:
        lines += [f"kernel {k.op} {k.case}", *(f"attr {name}" for name in k.attributes)]
        lines += [_words("in", x.name, x.dtype, *x.axes) for x in k.inputs]
        lines += [_words("out", x.name, x.dtype, *x.axes) for x in k.outputs]
        lines += [*(_words("require", *code) for code in k.requires), _words("grid", *k.grid)]
        lines += [_rendered(a) for a in k.arguments]
        lines += [
            _words(
                "cubin",
                c.target,
                c.file,
                c.num_bytes,
                c.sha256,
                c.source,
                c.registers,
                c.shared_bytes,
                c.warps,
                c.entry,
            )
            for c in k.cubins
        ]
        lines += [_words("as", [x.axes for x in k.inputs].index(out.axes)) for out in k.outputs]
    return "".join(f"{line}\n" for line in lines)


def _rendered(a: Argument) -> str:
    tail = {"tensor": (a.source,), "int": a.code, "attr": (a.source, f"{a.factor:.17g}"), "null": ()}[a.kind]
    return _words("arg", a.name, "*i8" if a.type.startswith("*") else a.type, a.divisible, a.kind, *tail)


def _words(*words: Axis) -> str:
    return " ".join(map(str, words))


def parameters(cubin: bytes, entry: str) -> list[tuple[int, int]]:
    """(offset, bytes) of each parameter as the chip's code has them: EIATTR_KPARAM_INFO of .nv.info.<entry>."""
    shoff, shentsize, shnum, shstrndx = (*struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<3H", cubin, 58))
    heads = [struct.unpack_from("<IIQQQQ", cubin, shoff + i * shentsize) for i in range(shnum)]
    names = heads[shstrndx][4]
    wanted = f".nv.info.{entry}\0".encode()
    start, size = next((h[4], h[5]) for h in heads if cubin[names + h[0] :].startswith(wanted))
    found, at = {}, start
    while at < start + size:
        form, kind, length = struct.unpack_from("<BBH", cubin, at)
        if form == 4 and kind == 0x17:
            _, ordinal, offset, bits = struct.unpack_from("<IHHI", cubin, at + 4)
            found[ordinal] = offset, bits >> 18
        at += 4 + (length if form == 4 else 0)
    return [found[i] for i in range(len(found))]


@cache
def sanitized(name: str, *sources: Path) -> Path:
    """``tests/kernels/manifest/<name>.cpp`` with ``sources``, compiled with AddressSanitizer and UBSan."""
    built = Path(_HOME.name) / name
    command = [
        os.environ.get("CXX", "c++"),
        "-std=c++17",
        *SANITIZED,
        f"-I{ROOT / 'csrc'}",
        "-DGLIMT_TENSORRT_DECLARED",
    ]
    command += [str(HERE / f"manifest/{name}.cpp"), *map(str, sources), "-ldl", "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


class Process:
    """A program that answers each line with one, "ok ..." or "error ..."; it may never end by itself."""

    def __init__(self, program: Path, **around: str) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **around}
        )

    def ask(self, *words: object) -> tuple[bool, str]:
        """(whether it went well, the answer or the error)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the program ended with {self.process.wait()}"
        kind, _, rest = answer.rstrip("\n").partition(" ")
        return kind == "ok", rest

    def close(self) -> None:
        """Memory that is lost shows here."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()


class Reader(Process):
    """The C++ reader of manifests."""

    def __init__(self) -> None:
        super().__init__(sanitized("probe", *SOURCES))

    def parse(self, content: bytes) -> tuple[bool, str]:
        went, says = self.ask("parse", content.hex())
        return went, bytes.fromhex(says).decode() if went else says

    def launch(
        self, index: int, shapes: Sequence[Sequence[int]], addresses: Sequence[int], factors: Sequence[float]
    ) -> Launch | str:
        """What the call comes to, or why the kernel does not take it."""
        sizes = ";".join(",".join(map(str, shape)) or "-" for shape in shapes)
        given = (",".join(map(str, numbers)) or "-" for numbers in (addresses, factors))
        went, says = self.ask("launch", index, sizes or ";", *given)
        if not went:
            return says
        grid, _, params = says.partition(" ")
        return Launch(int(grid), bytes.fromhex(params))

"""Plant one bug into a copy of the kernels and see which test notices.

The work tree is only read. A copy holds ``kernels/`` (and, for C++, what builds it); the tests of the work tree run
in a process whose ``glimt_kernels`` is the copy (``inside.py``). A bug is caught where its test fails by an assertion;
a mutation that breaks the code (a NameError, a crash) proves nothing and is an error of the catalogue.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernels/glimt_kernels"


class StaleError(ValueError):
    """The text that a mutation replaces is not there exactly once."""


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        op: the op whose tests must notice.
        file: below ``kernels/glimt_kernels``.
        test: the one that must notice, below ``tests/kernels``.
        what: the bug in words.
        old, new: text of the file, which must hold ``old`` exactly once, and what replaces it.
    """

    op: str
    file: str
    test: str
    what: str
    old: str
    new: str

    @property
    def native(self) -> bool:
        """Whether the module must be compiled anew; the tests of CUDA kernels compile them themselves."""
        return self.file.endswith("/cpu.h")

    def applied(self, text: str) -> str:
        """The file's text with the bug in it."""
        count = text.count(self.old)
        if count != 1:
            raise StaleError(f"{self.file}: {self.old!r} is there {count} times, not once; renew {self.what!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: ``caught`` by ``test``, or why that cannot be said."""

    mutation: Mutation
    caught: bool
    test: str
    says: str
    seconds: float


class Tree:
    """A copy of the sources with one mutation at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "kernels/glimt_kernels"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__", "_native*.so"))
        found = importlib.util.find_spec("glimt_kernels._native")
        if found is None or found.origin is None:
            raise RuntimeError("the compiled module is not installed; run make test or make lint once")
        self.native = Path(found.origin)
        self._restore_native()
        self.process: subprocess.Popen[str] | None = None

    def _restore_native(self) -> None:
        for old in self.package.glob("_native*.so"):
            old.unlink()
        shutil.copy(self.native, self.package)

    @contextmanager
    def planted(self, mutation: Mutation) -> Iterator[None]:
        """With the bug in the copy; afterwards it is as it was."""
        at = self.package / mutation.file
        text = at.read_text()
        at.write_text(mutation.applied(text))
        try:
            if mutation.native:
                self._build()
            yield
        finally:
            at.write_text(text)
            if mutation.native:
                self._restore_native()

    def _build(self) -> None:
        build = self.folder / "build"
        cmake = [sys.executable, "-m", "cmake"]
        if not build.exists():
            for name in ("csrc", "cmake"):
                shutil.copytree(ROOT / name, self.folder / name)
            shutil.copy(ROOT / "CMakeLists.txt", self.folder)
            options = ["-DGLIMT_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
            _quiet([*cmake, "-S", str(self.folder), "-B", str(build), "-G", "Unix Makefiles", *options])
        _quiet([*cmake, "--build", str(build)])
        for old in self.package.glob("_native*.so"):
            old.unlink()
        (built,) = build.glob("_native*.so")
        shutil.copy(built, self.package)

    def run(self, test: str) -> dict[str, str]:
        """Run tests on the copy; what failed first (see ``inside.py``), or nothing if all passed."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-B", str(Path(__file__).with_name("inside.py"))]
            environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CI": ""}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"folder": str(self.folder / "kernels"), "test": str(ROOT / "tests/kernels" / test)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"inside.py ended with {self.process.wait()} before it answered; it says why above")
        found: dict[str, str] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process that runs the tests."""
        if self.process is not None and self.process.stdin is not None and self.process.stdout is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


def _quiet(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def try_out(tree: Tree, mutation: Mutation) -> Outcome:
    """Plant it, run its test, and where that passes all tests of the file, to say who would have noticed."""
    start = time.perf_counter()
    with tree.planted(mutation):
        found = tree.run(mutation.test)
        named = bool(found)
        if not found and "::" in mutation.test:
            found = tree.run(mutation.test.partition("::")[0])
    seconds = time.perf_counter() - start
    if not found:
        return Outcome(mutation, False, "", "SURVIVED", seconds)
    if found["error"] != "AssertionError":
        return Outcome(mutation, False, found["test"], f"BROKEN, no wrong number: {found['error']}", seconds)
    if not named:
        return Outcome(mutation, False, found["test"], f"NOT BY {mutation.test}, which is to catch it", seconds)
    return Outcome(mutation, True, found["test"], found["says"], seconds)

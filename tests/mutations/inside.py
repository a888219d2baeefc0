"""Run the tests of one mutation after the other, each in a process of its own whose ``glimt_kernels`` is a copy.

    python inside.py < requests > answers

A request is a line of JSON, {"folder", "test"}: where the copy is, what to run. The answer is the first failure,
{"test", "error", "says"}, or {} if all passed. What costs most of a test's time, importing PyTorch and Triton, is done
once here; a request is a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TIMEOUT_S = 600
BEFORE = ("numpy", "torch", "triton.language", "triton.runtime.interpreter", "diffusers.video_processor")


class Copy(MetaPathFinder):
    """Finds the package in the copy, before whatever an editable install would find."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != "glimt_kernels":
            return None
        return PathFinder.find_spec(name, [self.folder] if path is None else list(path))


class Witness:
    """Remembers the first failure."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_exception_interact(self, node: Any, call: pytest.CallInfo[Any]) -> None:
        if not self.found and call.excinfo is not None:
            first = next(iter(str(call.excinfo.value).splitlines()), "")
            # "DID NOT RAISE" is an assertion too, only that pytest has a name of its own for it.
            error = {"Failed": "AssertionError"}.get(call.excinfo.typename, call.excinfo.typename)
            self.found = {"test": node.nodeid, "error": error, "says": first}


def run(folder: str, test: str) -> dict[str, str]:
    """In a process that has not imported ``glimt_kernels`` yet."""
    sys.meta_path.insert(0, Copy(folder))
    package = importlib.import_module("glimt_kernels").__file__ or ""
    if not Path(package).is_relative_to(folder):
        return {"test": "", "error": "wrong package", "says": f"glimt_kernels came from {package}, not from {folder}"}
    witness = Witness()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", test], plugins=[witness])
    if code != pytest.ExitCode.OK and not witness.found:
        return {"test": "", "error": f"exit {int(code)}", "says": "pytest says so"}
    return witness.found


def answer(request: dict[str, str]) -> dict[str, str]:
    """The same in a child, so that a crash or a hang is an answer as well."""
    with tempfile.TemporaryDirectory() as empty:
        result, log = Path(empty) / "result.json", Path(empty) / "log"
        child = os.fork()
        if child == 0:
            said = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            signal.alarm(TIMEOUT_S)
            try:
                result.write_text(json.dumps(run(**request)))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if result.exists():
            found: dict[str, str] = json.loads(result.read_text())
            return found
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        return {"test": "", "error": f"the process ended with status {status}", "says": "".join(last)}


def main() -> None:
    if "glimt_kernels" in sys.modules:
        raise RuntimeError("glimt_kernels was imported before there was a copy")
    for name in BEFORE:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

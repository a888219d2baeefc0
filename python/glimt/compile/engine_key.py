"""Everything that makes a plan file what it is.

Two plans with equal keys are interchangeable, two that differ in one field are not: a TRT engine runs only under the
version and on the GPU it was built for, and nothing in the file says which weights are inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from glimt.compile.store import Key
from glimt.errors import CompileError

PLACEMENTS = ("cut", "inline", "function")
# Where no kernel of ours is inside: every op is placed as a function.
NO_KERNELS = "none"
# What of glimt_kernels makes a kernel what it is: code, and the libraries built from it.
_KERNEL_FILES = (".py", ".h", ".cu", ".cuh", ".cpp", ".so")


@dataclass(frozen=True)
class EngineKey(Key):
    """The key of one TRT engine, or of the segments of one.

    Attributes:
        component: "transformer", "decoder_first", "decoder_step", ...
        weights: digest of the network's part of the checkpoint, from which the graph's weights were made.
        config: digest of the model's config.
        source: what wrote the graph: :func:`source_digest`. Known without exporting, as the graph's digest is not.
        graph: digest of the ONNX file that was compiled, precision passes applied.
        precision: "bf16", "fp16", "fp32", "fp8", ...
        bucket: input -> its least, best and largest shape.
        placement: op of ours -> "cut", "inline" or "function".
        kernels: digest of the kernels or the plugin library; :func:`kernels_digest`, or ``NO_KERNELS``.
        library: compiler and exact version: "tensorrt-rtx 1.7.1.116".
        gpu: what it was built for: "sm_89", or a device's name where it runs on no other.
        driver: major version of the driver; empty where the plan does not depend on it.
        flags: every setting of the builder that is not its default.
    """

    component: str
    weights: str
    config: str
    source: str
    graph: str
    precision: str
    bucket: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    placement: Mapping[str, str]
    kernels: str
    library: str
    gpu: str
    driver: str
    flags: Mapping[str, bool | int | float | str]

    def __post_init__(self) -> None:
        needed = ("component", "weights", "config", "source", "graph", "precision", "kernels", "library", "gpu")
        problems = [f"{name} of an engine's key must not be empty" for name in needed if not getattr(self, name)]
        for name, shapes in self.bucket.items():
            ordered = len(shapes) == 3 and len({*map(len, shapes)}) == 1
            if not ordered or any(not 0 < a <= b <= c for a, b, c in zip(*shapes, strict=True)):
                problems.append(f"bucket of {name!r} must be its least, best and largest shape, found {shapes}")
        problems += [
            f"placement of {op!r} must be one of {', '.join(PLACEMENTS)}, found {place!r}"
            for op, place in self.placement.items()
            if place not in PLACEMENTS
        ]
        if problems:
            raise CompileError(*problems)


@cache
def source_digest() -> str:
    """SHA-256 over names and contents of the files of glimt that decide what a graph is: its models and its export."""
    root = Path(__file__).parents[1]
    named = [root / name for name in ("models/linear.py", "models/eight_bit.py")]
    named += [root / "compile" / f"{name}.py" for name in ("decoder", "export", "graphs", "nodes")]
    files = {path.relative_to(root).as_posix(): path for path in (*named, *(root / "models/wan").glob("*.py"))}
    return _files_digest(sorted(files.items()))


@cache
def kernels_digest() -> str:
    """SHA-256 over names and contents of all files of ``glimt_kernels`` that kernels are made of."""
    spec = find_spec("glimt_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise CompileError("glimt_kernels is not installed; install glimt")
    return _files_digest(_kernel_files(map(Path, spec.submodule_search_locations)))


def _files_digest(files: Iterable[tuple[str, Path]]) -> str:
    state = hashlib.sha256()
    for name, path in files:
        state.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return state.hexdigest()


def _kernel_files(roots: Iterable[Path]) -> list[tuple[str, Path]]:
    """Files by their names inside the package; a build's own folder may hold some (editable installs)."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.suffix in _KERNEL_FILES and path.is_file():
                found.setdefault(path.relative_to(root).as_posix(), path)
    return sorted(found.items())

"""What a compiled kernel is made from, as a short digest.

A row of the committed table holds the digest of what was compiled for it, so that a row of another source, tile or
launch shape is noticed without compiling. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from glimt_kernels.triton_env import Build


def digest_of(build: Build, arch: int) -> str:
    """Of the kernel's source with all it calls, types, constants, launch options, and what its SASS must hold."""
    whole = {
        "source": sorted(sources(build.kernel).values()),
        "signature": dict(build.signature),
        "multiples of 16": divisible(build),
        "constants": {name: _plain(name, value) for name, value in build.constants.items()},
        "options": [build.num_warps, build.num_stages],
        "needs": build.needs.get(arch, ()),
        "arch": arch,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def divisible(build: Build) -> list[str]:
    """The arguments that are compiled as multiples of 16: pointers and 64-bit sizes (``Build.signature``)."""
    return [name for name, kind in build.signature.items() if kind.startswith("*") or kind == "i64"]


def sources(kernel: Any) -> dict[str, str]:
    """By place, the text of a ``triton.jit`` function, of those it calls, and the values of the constants it reads."""
    found: dict[str, str] = {}
    left = [kernel.fn]
    while left:
        function = left.pop()
        place = f"{function.__module__}.{function.__qualname__}"
        if place in found:
            continue
        found[place] = _parsed(function)[0]
        for name, value in _used(function):
            if not hasattr(value, "fn"):
                found[f"{place}.{name}"] = f"{name} = {_plain(name, getattr(value, 'value', value))}"
            elif not _of_triton(value.fn.__module__):
                left.append(value.fn)
    return found


@cache
def _parsed(function: FunctionType) -> tuple[str, tuple[str, ...]]:
    """(its text without comments, docstring and decorator; all names that it reads, dotted as they are written)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef), function
    tree.decorator_list = []
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:] or [ast.Pass()]
    return ast.unparse(tree), tuple(sorted({*_names(tree)}))


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """(name, value) of each global that a function reads, but what belongs to Triton."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    around = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
    for name in _parsed(function)[1]:
        root, *rest = name.split(".")
        if root not in around or root in function.__code__.co_varnames:
            continue
        value = around[root]
        while isinstance(value, ModuleType) and rest and not _of_triton(value.__name__):
            value = getattr(value, rest.pop(0))
        if not isinstance(value, ModuleType):
            yield name, value
        elif not _of_triton(value.__name__):
            raise TypeError(f"{function.__qualname__} reads the module {name} itself")


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield ".".join((inner.id, *reversed(parts)))


def _of_triton(module: str) -> bool:
    return module.partition(".")[0] == "triton"


def _plain(name: str, value: Any) -> str:
    """A constant as text.

    Raises:
        TypeError: it is none whose text tells all of it.
    """
    if isinstance(value, tuple):
        return f"({', '.join(_plain(name, part) for part in value)})"
    if value is None or isinstance(value, bool | int | float | str) or _of_triton(type(value).__module__):
        return repr(value)
    raise TypeError(f"the digest of a kernel knows no constants like {name}: {type(value).__name__}")

"""Providers of third parties: from a file, and from what installed packages announce.

``PROVIDERS`` is ``{op: {name: function of the op's arguments}}``; an op's name stands for all its workloads. A package
announces its own as an entry point of the group ``glimt_kernels.providers``.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from glimt_kernels.bench.ops import OPS
from glimt_kernels.bench.settings import BenchError
from glimt_kernels.bench.workload import Run

GROUP = "glimt_kernels.providers"
Providers = Mapping[str, Mapping[str, Run]]


def load(file: Path | None) -> Providers:
    """All of them, the file's last.

    Raises:
        BenchError: a source that cannot be loaded, or that names an op there is not.
    """
    found: dict[str, dict[str, Run]] = {}
    problems: list[str] = []
    sources: dict[str, Any] = {}
    for point in entry_points(group=GROUP):
        try:
            sources[f"entry point {point.name}"] = point.load()
        except Exception as error:  # noqa: BLE001, PERF203 (whatever a package raises is named, with the package)
            problems.append(f"entry point {point.name}: {type(error).__name__}: {error}")
    if file is not None:
        try:
            sources[str(file)] = runpy.run_path(str(file))["PROVIDERS"]
        except Exception as error:  # noqa: BLE001
            problems.append(f"provider_file: {file} gives no PROVIDERS: {type(error).__name__}: {error}")
    for source, given in sources.items():
        problems += _problems(source, given)
        if not problems:
            for op, functions in given.items():
                found.setdefault(op, {}).update(functions)
    if problems:
        raise BenchError(*problems)
    return found


def of(providers: Providers, op: str) -> dict[str, Run]:
    """Those for one workload."""
    return {**providers.get(op.partition("/")[0], {}), **providers.get(op, {})}


def _problems(source: str, given: Any) -> list[str]:
    if not isinstance(given, Mapping) or not all(isinstance(functions, Mapping) for functions in given.values()):
        return [f"{source}: PROVIDERS must be {{op: {{name: function}}}}, found {type(given).__name__}"]
    known = {*OPS, *(name.partition("/")[0] for name in OPS)}
    wrong = [f"{source}: no op {op!r}; there are {', '.join(sorted(known))}" for op in given if op not in known]
    return wrong + [
        f"{source}: {op}: {name} is not callable"
        for op, functions in given.items()
        for name, function in functions.items()
        if not callable(function)
    ]

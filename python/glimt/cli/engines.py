"""``glimt engines``: what was built, whether it is whole, and making room."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimt.cli.outcome import Outcome
from glimt.errors import RequestError

if TYPE_CHECKING:
    from glimt.compile.store import Artifact, ArtifactStore

DAMAGED = 1


def run(namespace: argparse.Namespace) -> Outcome:
    """One of the four; nothing is built or run."""
    from glimt.compile.build import default_store
    from glimt.compile.store import ArtifactStore

    problems = [] if namespace.action == "show" or namespace.engine is None else ["engine: only show takes one"]
    if namespace.action == "show" and namespace.engine is None:
        problems.append("engine: say which, as glimt engines show 8dba1c14; glimt engines list has their names")
    if namespace.action != "prune" and (namespace.max is not None or namespace.graphs):
        problems.append("engines: --max and --graphs are for prune")
    if problems:
        raise RequestError(*problems)
    store = default_store() if namespace.out is None else ArtifactStore(Path(namespace.out).expanduser())
    return {"list": _list, "show": _show, "verify": _verify, "prune": _prune}[namespace.action](store, namespace)


def _list(store: ArtifactStore, _: argparse.Namespace) -> Outcome:
    from glimt.compile.record import built, columns, is_engine, table

    artifacts = store.artifacts()
    engines = [built(artifact) for artifact in artifacts if is_engine(artifact)]
    graphs = [artifact for artifact in artifacts if not is_engine(artifact)]
    lines = table(engines) if engines else [f"no TRT engine in {store.root}; built by: glimt compile"]
    if graphs:
        rows = [
            (g.key["component"], g.key["precision"], g.folder.name[:12], f"{g.num_bytes / 1e6:.1f} MB") for g in graphs
        ]
        lines += ["", *columns([("graph of", "in", "name", "size"), *rows])]
    plain = [{"graph": graph.folder.name, "bytes": graph.num_bytes, **graph.key} for graph in graphs]
    result = {"path": str(store.root), "engines": [engine.to_dict() for engine in engines], "graphs": plain}
    return Outcome("\n".join(lines), result)


def _show(store: ArtifactStore, namespace: argparse.Namespace) -> Outcome:
    artifact = _named(store, namespace.engine)
    shown: dict[str, Any] = {
        "name": artifact.folder.name,
        "path": str(artifact.folder),
        "key": dict(artifact.key),
        "files": dict(artifact.files),
        "record": dict(artifact.record),
    }
    return Outcome(json.dumps(shown, indent=2), shown)


def _named(store: ArtifactStore, beginning: str) -> Artifact:
    """The artifact whose name begins so. Raises RequestError where there is none or there are several."""
    names = {artifact.folder.name: artifact for artifact in store.artifacts()}
    found = [name for name in names if name.startswith(beginning)]
    if len(found) != 1:
        there = ", ".join(name[:12] for name in found or names) or "nothing"
        what = "several begin so" if found else "none begins so"
        raise RequestError(f"engine: {what}: {beginning!r}; in {store.root} there is {there}")
    return names[found[0]]


def _verify(store: ArtifactStore, _: argparse.Namespace) -> Outcome:
    found = store.verify()
    damaged = {name: problems for name, problems in found.items() if problems}
    lines = [f"{len(found) - len(damaged)} of {len(found)} in {store.root} are whole, every byte compared"]
    lines += [f"{name[:12]}: {problem}" for name, problems in damaged.items() for problem in problems]
    result = {"path": str(store.root), "problems": {name: list(problems) for name, problems in found.items()}}
    return Outcome("\n".join(lines), result, DAMAGED if damaged else 0)


def _prune(store: ArtifactStore, namespace: argparse.Namespace) -> Outcome:
    from glimt.compile.record import is_engine

    def keep(artifact: Artifact) -> bool:
        return is_engine(artifact) or not namespace.graphs

    gone = store.prune(namespace.max, keep)
    kept = sum(artifact.num_bytes for artifact in store.artifacts())
    text = f"{len(gone)} removed from {store.root}, {kept / 1e6:.1f} MB kept"
    return Outcome("\n".join([text, *gone]), {"path": str(store.root), "removed": gone, "kept_bytes": kept})

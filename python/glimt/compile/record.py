"""What was built: one record for each TRT engine, and all of one call to look at.

Read back from the store's sidecars, so that ``glimt engines show`` says what ``glimt compile`` said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from glimt.compile.backends import PlanFacts
from glimt.compile.engine_key import EngineKey
from glimt.compile.spec import Bucket, CompileSpec
from glimt.compile.store import Artifact
from glimt.errors import CompileError

PLAN_FILE = "plan"
_FIELDS = frozenset(field.name for field in fields(EngineKey))
_WHY = {
    "function": "compiled as functions by the library, none of ours inside: a plan file can be built where our kernels "
    "cannot",
}


@dataclass(frozen=True)
class BuiltEngine:
    """One TRT engine in the store.

    Attributes:
        component, bucket, target: of what, for which size, for which card.
        artifact: where it is, with its key.
        facts: what the builder told of it.
        placed: nodes of ours by placement.
        reused: it was there already.
    """

    component: str
    bucket: Bucket
    target: str
    artifact: Artifact
    facts: PlanFacts
    placed: Mapping[str, Mapping[str, int]]
    reused: bool

    @property
    def fused(self) -> bool | None:
        """Whether all attention runs in fused kernels; ``None`` where the builder does not tell."""
        found = self.facts.fused_attentions
        return None if found is None else found == self.facts.attentions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "component": self.component,
            "bucket": str(self.bucket),
            "target": self.target,
            "engine": self.artifact.folder.name,
            "path": str(self.artifact.path(PLAN_FILE)),
            **self.facts.to_dict(),
            "fused": self.fused,
            "placement": {place: dict(nodes) for place, nodes in self.placed.items()},
            "reused": self.reused,
        }


def built(artifact: Artifact, *, reused: bool = True) -> BuiltEngine:
    """A TRT engine as the store has it. Raises CompileError for an artifact that is none."""
    if not is_engine(artifact):
        raise CompileError(f"{artifact.folder}: is no TRT engine")
    key, record = artifact.key, artifact.record
    return BuiltEngine(
        component=key["component"],
        bucket=Bucket(*record["bucket"]),
        target=key["gpu"],
        artifact=artifact,
        facts=PlanFacts(**record["facts"]),
        placed=record["placed"],
        reused=reused,
    )


def is_engine(artifact: Artifact) -> bool:
    """Whether this is a TRT engine, and not a graph."""
    return set(artifact.key) == _FIELDS


@dataclass(frozen=True)
class Build:
    """All TRT engines of one :class:`CompileSpec`; printed, a table."""

    spec: CompileSpec
    engines: tuple[BuiltEngine, ...]

    def __str__(self) -> str:
        return "\n".join([*table(self.engines), "", *self.notes()])

    def notes(self) -> list[str]:
        """What to know about them that is the same for all."""
        libraries = sorted({engine.artifact.key["library"] for engine in self.engines})
        notes = [f"{', '.join(libraries)}, {self.spec.precision}; in {self.engines[0].artifact.folder.parent}"]
        for place in sorted({place for engine in self.engines for place in engine.placed}):
            nodes = self.engines[0].placed.get(place, {})
            listed = ", ".join(f"{count} {op}" for op, count in nodes.items())
            notes.append(f"{place}: {listed}; {_WHY[place]}")
        notes.append("nothing was cut: each engine is a whole forward of its network")
        notes.append("no plan file was run: that takes the card it is for")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "spec": self.spec.to_dict(),
            "engines": [engine.to_dict() for engine in self.engines],
            "notes": self.notes(),
        }


def table(engines: Iterable[BuiltEngine]) -> list[str]:
    """A line for each, with a head."""
    head = ("network", "size", "card", "engine", "plan", "arena", "layers", "attention", "fused", "seconds")
    return columns([head, *map(_row, engines)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines, each column as wide as its widest text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(engine: BuiltEngine) -> tuple[str, ...]:
    facts = engine.facts
    fused = {True: "yes", False: f"only {facts.fused_attentions}", None: "not told"}[engine.fused]
    return (
        engine.component,
        str(engine.bucket),
        engine.target,
        engine.artifact.folder.name[:12],
        _megabytes(facts.plan_bytes),
        _megabytes(facts.activation_bytes),
        "not told" if facts.layers is None else str(facts.layers),
        str(facts.attentions),
        fused,
        "was there" if engine.reused else f"{facts.seconds:.1f}",
    )


def _megabytes(count: int | None) -> str:
    return "not told" if count is None else f"{count / 1e6:.1f} MB"

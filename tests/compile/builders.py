"""A stand-in for what writes plan files, a network to hand to it, and a card of the network's sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.compile_report import WanCard

from compile import exported
from glimt.compile.backends import PlanFacts, PlanJob
from glimt.compile.build import Network
from glimt.compile.export import GRAPH_FILE, GraphKey, export, open_graph
from glimt.compile.graphs import TransformerGraph
from glimt.errors import CompileError


class Builder:
    """Notes its jobs and writes a few bytes, or raises."""

    name = "tensorrt-rtx"

    def __init__(self, error: BaseException | None = None, version: str = "1.0") -> None:
        self.jobs: list[PlanJob] = []
        self.error, self.version = error, version

    def library(self) -> str:
        return f"{self.name} {self.version}"

    def flags(self) -> Mapping[str, bool]:
        return {"strongly_typed": True}

    def check_target(self, target: str) -> None:
        if target == "sm_121":
            raise CompileError(f"no {target}")

    def build(self, job: PlanJob, path: Path) -> PlanFacts:
        self.jobs.append(job)
        assert job.graph.name == GRAPH_FILE and job.graph.with_name("weights.bin").is_file()
        path.write_bytes(b"half")
        if self.error is not None:
            raise self.error
        return PlanFacts(4, None, None, None, 4, None, 0.5)


@cache
def _graphs() -> Path:
    return Path(tempfile.mkdtemp(prefix="once-", dir=exported.HOME.name))


def exported_once(graph: TransformerGraph, folder: Path) -> tuple[GraphKey, dict[str, Any]]:
    """As ``write_graph``, but what is equal in form and weights is exported once for all tests."""
    weight = graph.model.proj_out.weight.detach().float().numpy().tobytes()
    described = f"{sorted(graph.form.items())} {graph.model.config} {graph.precision} {weight.hex()}"
    home = _graphs() / hashlib.sha256(described.encode()).hexdigest()
    made = open_graph(home) if home.is_dir() else export(graph, home)
    for name in made.artifact.files:
        shutil.copy(made.artifact.path(name), folder)
    return GraphKey(**made.artifact.key), dict(made.artifact.record)


def network(**changes: Any) -> Network:
    """Two layers, in bfloat16."""
    model = exported.transformer("t2v")
    made = Network("transformer", "w" * 64, "c" * 64, lambda dtype: exported.in_precision(model, "bf16"), 512)
    return dataclasses.replace(made, **changes)


@dataclasses.dataclass(frozen=True)
class TinyCard(WanCard):
    """Of :func:`network`."""

    z_dim: int = 4

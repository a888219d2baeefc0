"""What makes plan files, behind one interface; :func:`builder` finds it by name. Importing this needs no compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

# Least, best and largest shape of an input.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PlanJob:
    """One plan file that is wanted.

    Attributes:
        graph: the ONNX file, its weights beside it.
        shapes: of every input.
        target: the card, as ``"sm_89"``.
    """

    graph: Path
    shapes: Mapping[str, Shapes]
    target: str


@dataclass(frozen=True)
class PlanFacts:
    """What the builder told about a plan file; ``None`` where it tells nothing.

    Attributes:
        plan_bytes: of the file. weights_bytes: of the weights inside.
        activation_bytes: of device memory that a call needs beside weights, inputs and outputs.
        layers: of the TRT engine: launches, about.
        attentions: of the network. None of them may be taken apart: where one has no fused kernel, the build fails.
        fused_attentions: kernels of attention that the builder listed.
        seconds: that it took.
    """

    plan_bytes: int
    weights_bytes: int | None
    activation_bytes: int | None
    layers: int | None
    attentions: int
    fused_attentions: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Builder(Protocol):
    """A compiler of graphs."""

    name: str

    def library(self) -> str:
        """Name and exact version. Raises MissingDependencyError where it is not installed."""

    def flags(self) -> Mapping[str, bool | int | float | str]:
        """Every setting that is not the library's default."""

    def check_target(self, target: str) -> None:
        """Raise CompileError where no plan file for this card can be made on this machine."""

    def build(self, job: PlanJob, path: Path) -> PlanFacts:
        """Write the plan file to ``path``. Raises CompileError with what the compiler had to say."""


def builder(name: str) -> Builder:
    """The builder of a backend in ``glimt.compile.spec.TARGETS``."""
    from glimt.compile.backends.tensorrt import FLAVOURS, TensorRT

    return TensorRT(FLAVOURS[name])

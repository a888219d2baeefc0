"""An engine that paints instead of denoising, to test the edges with: fast, and slow or broken where it is told to be.

``install(monkeypatch)`` puts it in the place of ``glimt.engine``; a child process calls ``pretend()``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glimt.errors import CheckpointError
from glimt.pipeline.events import FrameChunk, StageEvent, StepState
from glimt.report import Provenance, RunReport
from glimt.request import GenerateRequest, ResolvedRequest
from glimt.weights.origin import Origin

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Card:
    """A model of 16-pixel grids and 4n + 1 frames."""

    name: str = "fake"
    variant: str = "t2v"
    height: int = 32
    width: int = 48
    num_frames: int = 9
    fps: float = 8.0
    num_inference_steps: int = 4
    guidance_scale: float = 3.0
    guidance_scale_2: float | None = None
    shift: float = 3.0
    solver: str = "euler"
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8
    z_dim: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    expand_timesteps: bool = False
    boundary_ratio: float | None = None


@dataclass
class Behaviour:
    """What the next engines are like. ``trace`` is what happened."""

    step_s: float = 0.0
    digest: str = "d" * 64
    fails_at_step: int = 0
    name: str = "fake"
    salt: str = ""
    fallbacks: tuple[str, ...] = ()
    staged: bool = False
    painted_by: str = "reference"
    versions: dict[str, str] = field(default_factory=lambda: {"glimt": "0"})
    trace: list[str] = field(default_factory=list)


behaviour = Behaviour()


class Engine:
    def __init__(self, config: Any, model: str) -> None:
        self.card = Card()
        self.config = config
        self.model = model

    @classmethod
    def load(cls, model: StrPath = "glimt-world", config: Any = None, base: StrPath | None = None) -> Engine:
        engine = cls.open(model, config, base)
        engine.preload()
        return engine

    @classmethod
    def open(cls, model: StrPath = "glimt-world", config: Any = None, base: StrPath | None = None) -> Engine:
        name = os.fspath(model)
        if name not in ("glimt-world", behaviour.name):
            raise CheckpointError(f"no model {name!r}")
        print("a library prints what nobody asked for")
        return cls(config, name)

    def preload(self) -> None:
        behaviour.trace.append(f"load {self.model}")

    def plan(self, request: GenerateRequest | ResolvedRequest) -> Any:
        resolved = _resolved(request)
        notes = ["negative_prompt has no effect"] if request.negative_prompt and not resolved.guided else []
        notes += ["the prompt is cut"] if len(request.prompt) > 100 else []
        return types.SimpleNamespace(
            request=resolved,
            to_dict=resolved.to_dict,
            require_fit=lambda: None,
            staged=behaviour.staged,
            notes=notes,
            fallbacks=behaviour.fallbacks,
        )

    def provenance(self, request: GenerateRequest | ResolvedRequest, variant: int = 0) -> dict[str, Any]:
        behaviour.trace.append("provenance")
        return Provenance(
            model=self.card.name,
            model_digest=behaviour.digest,
            origin=Origin(self.model),
            request=_resolved(request),
            config=self.config.to_dict(),
            device="cpu",
            dtype="float32",
            implementations={"paint": "reference"},
            versions=behaviour.versions,
        ).record(variant)

    def stream(self, request: GenerateRequest | ResolvedRequest) -> Iterator[Any]:
        resolved = _resolved(request)
        try:
            yield StageEvent("text", "begin", 0.0)
            yield StageEvent("text", "end", 1.0)
            for variant in range(resolved.num_videos_per_prompt):
                yield from self._video(resolved, variant)
            yield StageEvent("done", "end", 9.0, report=RunReport((), 9.0, 0, {"paint": behaviour.painted_by}))
        finally:
            behaviour.trace.append("closed")

    def _video(self, resolved: ResolvedRequest, variant: int) -> Iterator[Any]:
        steps, every = resolved.num_inference_steps, resolved.preview_every
        still = np.zeros((3, resolved.height, resolved.width, 3), np.uint8)
        yield StageEvent("denoise", "begin", 1.0, variant)
        for step in range(1, steps + 1):
            time.sleep(behaviour.step_s)
            if step == behaviour.fails_at_step:
                raise RuntimeError("broken on purpose")
            decode = (lambda _: still) if every and step % every == 0 else None
            yield StepState(step, steps, 0.5, 500.0, 0, 1.0, 0.1, x0=None, variant=variant, _preview=decode)
        yield StageEvent("denoise", "end", 2.0, variant)
        yield StageEvent("decode", "begin", 2.0, variant)
        clip = paint(resolved, variant)
        for first in [0, *range(1, len(clip), 4)]:
            yield FrameChunk(first, clip[first : first + (4 if first else 1)], resolved.fps, variant)
        yield StageEvent("decode", "end", 3.0, variant, implementations={"paint": behaviour.painted_by})


def _resolved(request: GenerateRequest | ResolvedRequest) -> ResolvedRequest:
    return request if isinstance(request, ResolvedRequest) else request.resolve(Card())


def paint(resolved: ResolvedRequest, variant: int = 0) -> np.ndarray:
    """Frames that follow from the prompt and the variant's seed alone."""
    text = f"{resolved.prompt} {resolved.seeds[variant]} {behaviour.salt}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    shape = (resolved.num_frames, resolved.height, resolved.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pretend() -> None:
    """Take the place of ``glimt.engine`` in this process."""
    sys.modules["glimt.engine"] = sys.modules[__name__]


def install(monkeypatch: Any) -> Behaviour:
    """Take the place of ``glimt.engine`` during one test."""
    monkeypatch.setitem(sys.modules, "glimt.engine", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "behaviour", Behaviour())
    return sys.modules[__name__].behaviour

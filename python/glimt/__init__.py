"""glimt: an inference engine for video diffusion transformers.

Three verbs stand on one object: ``Engine.plan``, ``Engine.stream`` and ``Engine.generate``; everything else is a value.
Importing this package loads neither torch nor numpy: each public name is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimt.compile.record import Build as Build
    from glimt.compile.spec import CompileSpec as CompileSpec
    from glimt.config import EngineConfig as EngineConfig
    from glimt.engine import Engine as Engine
    from glimt.errors import CheckpointError as CheckpointError
    from glimt.errors import CompileError as CompileError
    from glimt.errors import GlimtError as GlimtError
    from glimt.errors import KeyMismatchError as KeyMismatchError
    from glimt.errors import MemoryBudgetError as MemoryBudgetError
    from glimt.errors import MissingDependencyError as MissingDependencyError
    from glimt.errors import NonFiniteError as NonFiniteError
    from glimt.errors import OutputError as OutputError
    from glimt.errors import RequestError as RequestError
    from glimt.pipeline import FrameChunk as FrameChunk
    from glimt.pipeline import StageEvent as StageEvent
    from glimt.pipeline import StepState as StepState
    from glimt.plan import GenerationPlan as GenerationPlan
    from glimt.report import Provenance as Provenance
    from glimt.report import RunReport as RunReport
    from glimt.report import VideoResult as VideoResult
    from glimt.request import GenerateRequest as GenerateRequest

_HOME = {
    "Engine": "glimt.engine",
    "EngineConfig": "glimt.config",
    "CompileSpec": "glimt.compile.spec",
    "Build": "glimt.compile.record",
    "GenerateRequest": "glimt.request",
    "GenerationPlan": "glimt.plan",
    "StageEvent": "glimt.pipeline",
    "StepState": "glimt.pipeline",
    "FrameChunk": "glimt.pipeline",
    "VideoResult": "glimt.report",
    "RunReport": "glimt.report",
    "Provenance": "glimt.report",
    "GlimtError": "glimt.errors",
    "RequestError": "glimt.errors",
    "CheckpointError": "glimt.errors",
    "CompileError": "glimt.errors",
    "KeyMismatchError": "glimt.errors",
    "MemoryBudgetError": "glimt.errors",
    "NonFiniteError": "glimt.errors",
    "OutputError": "glimt.errors",
    "MissingDependencyError": "glimt.errors",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from glimt.env import package_version

        return package_version("glimt") or "0+unknown"
    if name not in _HOME:
        from glimt.suggest import did_you_mean

        raise AttributeError(f"module 'glimt' has no attribute {name!r}{did_you_mean(name, _HOME)}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])

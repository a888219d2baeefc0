"""``glimt tune``: the fastest implementation of every operation on this machine, for a model's own calls."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from glimt.cli.outcome import Outcome
from glimt.errors import RequestError

if TYPE_CHECKING:
    from glimt_kernels.bench import Settings
    from glimt_kernels.bench.tune import Calls


def run(namespace: argparse.Namespace) -> Outcome:
    """What was found goes to standard error as it is found; the choices and where they are kept are the result."""
    from glimt_kernels import bench
    from glimt_kernels.bench.tune import choices, tune

    if namespace.model is not None and namespace.shapes:
        raise RequestError("shapes: give either --model or --shapes")
    try:
        settings = bench.Settings(
            ops=namespace.op,
            shapes=namespace.shapes,
            dtype=namespace.dtype,
            device=namespace.device,
            repeats=namespace.repeats,
        )
        calls = None if namespace.shapes else _model_calls(namespace.model, namespace.offline, settings)
        trials, path = tune(settings, calls, say=lambda line: print(line, file=sys.stderr, flush=True))
    except bench.BenchError as error:
        raise RequestError(*error.problems) from error
    changed = sum(trial.best != trial.built_in for trial in trials)
    text = f"{len(trials)} calls timed, {changed} run best by another implementation than the built-in one"
    result = {"path": str(path), "choices": choices(trials), "trials": [trial.to_dict() for trial in trials]}
    return Outcome(f"{text}\nkept in {path}", result)


def _model_calls(model: str | None, offline: bool | None, settings: Settings) -> dict[str, Calls]:
    """What a model's networks call for clips of its own size; configs alone are read."""
    from glimt.config import EngineConfig
    from glimt.models.zoo import BUNDLED
    from glimt.plan import Planner
    from glimt.plan.calls import model_calls
    from glimt.weights.hub import open_model
    from glimt_kernels.bench.settings import DTYPES

    planner = Planner.of(open_model(model or BUNDLED, offline=offline), EngineConfig(device="cpu"))
    return {planner.card.name: model_calls(planner, DTYPES[settings.dtype_name], settings.torch_device)}

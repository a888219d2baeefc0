"""``glimt tune``: the fastest implementation of every operation on this machine, at a model's own shapes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from glimt.cli.outcome import Outcome
from glimt.errors import RequestError

if TYPE_CHECKING:
    from glimt_kernels.bench import Shape


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
        shapes = None if namespace.shapes else _model_shapes(namespace.model, namespace.offline)
        trials, path = tune(settings, shapes, say=lambda line: print(line, file=sys.stderr, flush=True))
    except bench.BenchError as error:
        raise RequestError(*error.problems) from error
    changed = sum(trial.best != trial.built_in for trial in trials)
    text = f"{len(trials)} operations timed, {changed} run best by another implementation than the built-in one"
    result = {"path": str(path), "choices": choices(trials), "trials": [trial.to_dict() for trial in trials]}
    return Outcome(f"{text}\nkept in {path}", result)


def _model_shapes(model: str | None, offline: bool | None) -> dict[str, Shape]:
    """A model's transformer at work on a clip of its default size; configs alone are read."""
    from glimt.config import EngineConfig
    from glimt.models.zoo import BUNDLED
    from glimt.plan import Planner
    from glimt.weights.hub import open_model
    from glimt_kernels.bench import Shape

    planner = Planner.of(open_model(model or BUNDLED, offline=offline), EngineConfig(device="cpu"))
    card, config = planner.card, planner.transformer
    latents = (
        (card.num_frames - 1) // card.scale_factor_temporal + 1,
        card.height // card.scale_factor_spatial,
        card.width // card.scale_factor_spatial,
    )
    t, y, x = (size // patch for size, patch in zip(latents, card.patch, strict=True))
    shape = Shape(
        grid=(t, y, x),
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        ffn_dim=config.ffn_dim,
        text=card.text_tokens,
        layers=config.num_layers,
        clip=(card.num_frames, card.height, card.width),
    )
    return {card.name: shape}

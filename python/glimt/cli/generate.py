"""``glimt generate``: a prompt becomes an mp4, with its settings inside."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from glimt.cli.asking import Problems, engine_config, generate_request
from glimt.cli.outcome import Outcome
from glimt.cli.outputs import Outputs, VideoFiles
from glimt.cli.progress import Progress, duration, progress

if TYPE_CHECKING:
    from glimt.engine import Engine
    from glimt.request import GenerateRequest, ResolvedRequest

_PREVIEWS = 10  # how many there are if it is not said how often


def run(namespace: argparse.Namespace) -> Outcome:
    """Generate, and say where the files are."""
    result = _generate(namespace)
    lines = []
    for video in result["videos"]:
        lines.append(
            f"{video['path']}: {video['frames']} frames of {video['width']}x{video['height']} at {video['fps']:g} fps, "
            f"{duration(video['seconds'])}, {video['bytes'] / 1000:.0f} kB, seed {video['seed']}"
        )
        lines += [video[kind] for kind in ("webp", "gif") if kind in video]
    lines += [result["sheet"]] if result["sheet"] else []
    return Outcome("\n".join(lines), result)


def _generate(namespace: argparse.Namespace) -> dict[str, Any]:
    problems = Problems()  # everything that can be known to be wrong before a model is there
    with problems.gathered():
        config = engine_config(namespace)
    with problems.gathered():
        request = generate_request(namespace, namespace.preview_every or 0)
    with problems.gathered():
        outputs = Outputs.of(namespace)
        outputs.check(fps=namespace.fps or 1)
    problems.raise_any()
    with progress(namespace.quiet) as show:
        show.begin("load")
        from glimt.engine import Engine  # takes a second: PyTorch comes with it

        resolved = _check(Engine.open(namespace.model, config, base=namespace.base), request, outputs)
        engine = Engine.load(namespace.model, config, base=namespace.base)
        show.end()
        if outputs.preview_dir is not None and namespace.preview_every is None:
            every = max(1, round(resolved.num_inference_steps / _PREVIEWS))
            request = dataclasses.replace(request, preview_every=every)
        return _run(engine, request, resolved, outputs, show)


def _check(engine: Engine, request: GenerateRequest, outputs: Outputs) -> ResolvedRequest:
    """Everything that can be known to be wrong before the weights are read."""
    plan = engine.plan(request)
    asked = plan.request
    problems = Problems()
    with problems.gathered():
        plan.require_fit()
    with problems.gathered():
        outputs.check(asked.num_frames, asked.height, asked.width, asked.fps)
    problems.raise_any()
    return asked


def _run(
    engine: Engine, request: GenerateRequest, resolved: ResolvedRequest, outputs: Outputs, show: Progress
) -> dict[str, Any]:
    from glimt.cli.following import Previews, follow

    previews = Previews(outputs.preview_dir, resolved.seeds) if outputs.preview_dir else None
    with VideoFiles(outputs, resolved, partial(engine.provenance, request)) as videos:
        report = follow(engine, request, resolved, show, videos.add, previews)
    videos.save_sheet()
    return {
        "videos": [take.to_dict() for take in videos.takes],
        "sheet": str(outputs.sheet) if outputs.sheet else None,
        "previews": previews.paths if previews else [],
        "report": report.to_dict() if report is not None else None,
    }

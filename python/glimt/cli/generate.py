"""``glimt generate``: a prompt becomes an mp4, with its settings inside."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from glimt.cli.asking import Problems, generate_request, planned
from glimt.cli.following import Previews, follow, warn
from glimt.cli.outcome import Outcome
from glimt.cli.outputs import Outputs, VideoFiles
from glimt.cli.progress import Progress, duration, progress

if TYPE_CHECKING:
    from glimt.engine import Engine
    from glimt.plan import GenerationPlan
    from glimt.request import ResolvedRequest

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
    outputs, problems = Outputs.of(namespace), Problems()
    with problems.gathered():
        outputs.check(fps=namespace.fps or 1)
    request = generate_request(namespace, namespace.preview_every or 0)
    began = time.perf_counter()
    engine, plan = planned(namespace, request, problems)
    _check(plan, outputs, problems)
    with progress(namespace.quiet) as show:
        show.begin("load", began=began)
        if not plan.staged:  # a staged run loads each network when its stage comes
            engine.preload()
        show.end()
        warn(plan, show)
        return _run(engine, _with_previews(plan.request, outputs), outputs, show)


def _check(plan: GenerationPlan, outputs: Outputs, problems: Problems) -> None:
    """What else can be known to be wrong before the weights are read; raises it with the problems found before."""
    asked, checked = plan.request, problems.found
    with problems.gathered():
        plan.require_fit()
    if not checked:  # else the files have been complained about
        with problems.gathered():
            outputs.check(asked.num_frames, asked.height, asked.width, asked.fps)
    problems.raise_any()


def _with_previews(asked: ResolvedRequest, outputs: Outputs) -> ResolvedRequest:
    if outputs.preview_dir is None or outputs.preview_every is not None:
        return asked
    return dataclasses.replace(asked, preview_every=max(1, round(asked.num_inference_steps / _PREVIEWS)))


def _run(engine: Engine, asked: ResolvedRequest, outputs: Outputs, show: Progress) -> dict[str, Any]:
    show.begin("digest")  # reads all of the model: now, not when the last frame is there and waits for its record
    record = engine.provenance(asked)
    show.end()
    kept = Previews(outputs.preview_dir, asked.seeds) if outputs.preview_dir else contextlib.nullcontext()
    with kept as previews, VideoFiles(outputs, asked, record) as videos:
        report = follow(engine, asked, show, videos.add, previews, videos.finish)
        videos.complete()
    return {
        "videos": [take.to_dict() for take in videos.takes],
        "sheet": str(outputs.sheet) if outputs.sheet else None,
        "previews": [str(path) for path in previews.paths] if previews else [],
        "report": report.to_dict() if report is not None else None,
    }

"""``glimt generate``: a prompt becomes an mp4, with its settings inside."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from glimt.cli.asking import Problems, engine_config, generate_request
from glimt.cli.outputs import Outputs, VideoFiles
from glimt.cli.progress import Progress, duration, progress

_PREVIEWS = 10  # how many there are if it is not said how often


def run(namespace: argparse.Namespace) -> int:
    """Generate, and say on standard output where the files are."""
    result = _generate(namespace)
    for video in result["videos"]:
        print(
            f"{video['path']}: {video['frames']} frames of {video['width']}x{video['height']} at {video['fps']:g} fps, "
            f"{duration(video['seconds'])}, {video['bytes'] / 1000:.0f} kB, seed {video['seed']}"
        )
        for kind in ("webp", "gif"):
            if kind in video:
                print(video[kind])
    if result["sheet"]:
        print(result["sheet"])
    return 0


def run_json(namespace: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Generate, and return what there is to say as one object."""
    return 0, _generate(namespace)


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
        from glimt.engine import Engine

        engine = Engine.load(namespace.model, config)
        show.end()
        return _run(engine, request, outputs, namespace.preview_every, show)


def _run(engine: Any, request: Any, outputs: Outputs, preview_every: int | None, show: Progress) -> dict[str, Any]:
    from glimt.cli.following import Previews, follow

    resolved = request.resolve(engine.card)
    outputs.check(resolved.num_frames, resolved.height, resolved.width, resolved.fps)
    previews = Previews(outputs.preview_dir, resolved.seeds) if outputs.preview_dir else None
    if previews and preview_every is None:
        every = max(1, round(resolved.num_inference_steps / _PREVIEWS))
        request = dataclasses.replace(request, preview_every=every)
    with VideoFiles(outputs, resolved, lambda variant: engine.provenance(resolved, variant)) as videos:
        report = follow(engine, request, resolved, show, videos.add, previews)
    videos.save_sheet()
    return {
        "videos": [take.to_dict() for take in videos.takes],
        "sheet": str(outputs.sheet) if outputs.sheet else None,
        "previews": previews.paths if previews else [],
        "report": report.to_dict() if report is not None else None,
    }

"""A process that runs one provider: one JSON command a line on stdin, one JSON reply a line on stdout.

    python -m benchmarks.worker MODULE:CLASS MODEL THREADS

    {"do": "load"} -> {"load": span, "about": {...}}
    {"do": "run", "request": {...}, "frames": FILE.npy or null} -> {"stages": {name: span}, "peak_rss_bytes": n}

Standard library only until ``load``: a provider's imports are part of its time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.requests import Request
from benchmarks.stopwatch import Stopwatch


def main(arguments: list[str]) -> int:
    spec, model, threads = arguments
    # Libraries print to stdout as they like; replies go to a copy of it, and what they print to stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = spec.partition(":")
    provider = getattr(importlib.import_module(module), name)()
    for line in sys.stdin:
        command = json.loads(line)
        reply = _load(provider, model, int(threads)) if command["do"] == "load" else _run(provider, command)
        print(json.dumps(reply), file=replies, flush=True)
    return 0


def _load(provider: Any, model: str, threads: int) -> dict[str, Any]:
    watch = Stopwatch()
    with watch.span("load"):
        provider.load(model, threads)
    return {"load": watch.spans["load"].to_dict()}


def _run(provider: Any, command: dict[str, Any]) -> dict[str, Any]:
    watch = Stopwatch()
    with watch.span("whole"):
        frames = provider.run(Request(**command["request"]), watch)
    peak = _peak_rss_bytes()
    if command.get("frames"):
        _save(frames, command["frames"])
    stages = {name: span.to_dict() for name, span in watch.spans.items()}
    return {"stages": stages, "peak_rss_bytes": peak, "about": provider.about()}


def _peak_rss_bytes() -> int:
    """Linux: VmHWM, which unlike ``ru_maxrss`` is not inherited from the process that started this one."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 (pathlib would be imported on one side's time)
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _save(frames: Any, path: str) -> None:
    import numpy as np

    if frames.dtype != np.uint8:
        frames = (frames * 255).round().astype(np.uint8)
    np.save(path, frames)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""``glimt models``: the models that can be asked for by name, with what they do by default, and where they are."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from glimt.cli.outcome import Outcome
from glimt.models import zoo
from glimt.weights.hub import whereabouts


def run(_namespace: argparse.Namespace) -> Outcome:
    """The table of known models."""
    models = [{"name": name, **asdict(defaults), "where": whereabouts(name)} for name, defaults in zoo.KNOWN.items()]
    rows = [("name", "size", "frames", "fps", "steps", "guidance", "where"), *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "Also: any folder in the Diffusers layout, safetensors file in Wan's own, or Hub id of a Wan model."]
    return Outcome("\n".join(lines), {"models": models})


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    scales = [model[name] for name in ("guidance_scale", "guidance_scale_2") if model[name] is not None]
    return (
        model["name"],
        f"{model['width']}x{model['height']}",
        str(model["num_frames"]),
        f"{model['fps']:g}",
        str(model["num_inference_steps"]),
        ", ".join(f"{scale:g}" for scale in scales),
        model["where"],
    )

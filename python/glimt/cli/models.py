"""``glimt models``: the models that can be asked for by name, with what they do by default, and where they are."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glimt.cli.outcome import Outcome
from glimt.models import zoo


def run(_namespace: argparse.Namespace) -> Outcome:
    """The table of known models."""
    models = [{"name": name, **asdict(defaults), "where": _where(name)} for name, defaults in zoo.KNOWN.items()]
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


def _where(name: str) -> str:
    """``bundled``, ``downloaded`` (begun, at least: the hub's cache has a folder for it), or ``hub``."""
    if name == zoo.BUNDLED:
        return "bundled" if _bundled_folder() else "missing from this installation"
    folder = _hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return "downloaded" if folder.is_dir() else "hub"


def _bundled_folder() -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("glimt_world")
    folders = [Path(place) / "checkpoint" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()

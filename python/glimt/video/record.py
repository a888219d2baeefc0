"""The settings record: what made this video, inside the video file.

One JSON object in the ``comment`` tag, which mp4, Matroska and WebM carry and which survives a lossless re-wrap.
The record says enough to make the frames again (``glimt reproduce FILE``) and to see whether they came out the same.

    {"format": "glimt-record/1",
     "model": {"name": ..., "source": ..., "revision": ..., "base": {...}, "digest": ..., "components": {...}},
     "request": {...},  "config": {...},
     "versions": {...},  "implementations": {...},  "notes": [how a prompt was cut, what had no effect],
     "frames": {"sha256": hex, "count": F, "height": H, "width": W, "fps": "24/1"}}

``versions`` is of Python and the packages that can change a result, and holds the CPU's instruction set.
``model.source`` is what the model was called when it was opened, letter for letter: a name, a Hub id (``revision`` is
then its commit), or a path as it was typed. A relative path is not completed, so it opens from the folder it was typed
in; an absolute one, or one that a shell completed, shows whoever gets the video where the model lay: type a relative
one to avoid that. ``model.base`` is the same of what a lone transformer took the rest from. Another place of the model
is said with ``glimt reproduce FILE --model PLACE``.
``frames.sha256`` is the SHA-256 of the uint8 RGB frames ``[F, H, W, 3]`` before encoding, in C order.
There is no time of day in it: the same request gives the same record.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimt.errors import OutputError

RECORD_FORMAT = "glimt-record/1"
_MAX_RECORD_CHARS = 16 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OBJECTS = ("model", "request", "versions", "implementations", "frames")


def encode_record(record: Mapping[str, Any]) -> str:
    """The record as one line of ASCII JSON with sorted keys; OutputError if it is no valid record."""
    try:
        text = json.dumps({"format": RECORD_FORMAT, **record}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputError(f"the settings record cannot be written as JSON: {error}") from error
    parse_record(text, "the settings record")
    return text


def parse_record(text: str, where: str) -> dict[str, Any]:
    """The record that ``text`` holds; OutputError that names every fault otherwise. ``where`` begins the message."""
    if len(text) > _MAX_RECORD_CHARS:
        raise OutputError(f"{where}: {len(text)} characters is too long for a settings record")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not str(record.get("format", "")).startswith("glimt-record/"):
        raise OutputError(f"{where}: there is a comment, but it is not a glimt settings record")
    if record["format"] != RECORD_FORMAT:
        raise OutputError(f"{where}: the record has format {record['format']!r}; this version reads {RECORD_FORMAT!r}")
    faults = _faults(record)
    if faults:
        raise OutputError(f"{where}: the settings record is damaged: " + "; ".join(faults))
    return record


def _faults(record: dict[str, Any]) -> list[str]:
    faults = [f"{name!r} is not an object" for name in _OBJECTS if not isinstance(record.get(name), dict)]
    if not isinstance(record.get("config", {}), dict):
        faults.append("'config' is not an object")
    if faults:
        return faults
    if not isinstance(record["model"].get("components", {}), dict):
        faults.append("'model.components' is not an object")
    if not isinstance(record["model"].get("digest"), str):
        faults.append("'model.digest' is missing")
    faults += _origin_faults(record["model"], "model")
    frames = record["frames"]
    if not _SHA256.fullmatch(str(frames.get("sha256"))):
        faults.append("'frames.sha256' is not a SHA-256 in hexadecimal")
    for name in ("count", "height", "width"):
        value = frames.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"'frames.{name}' is not a positive whole number")
    return faults


def _origin_faults(values: dict[str, Any], where: str) -> list[str]:
    """What is wrong with the place of a model, and of its base (which has none itself)."""
    faults = []
    if not isinstance(values.get("source"), str):
        faults.append(f"'{where}.source' is missing")
    if not isinstance(values.get("revision", ""), str):
        faults.append(f"'{where}.revision' is not text")
    base = values.get("base")
    if base is not None and (where != "model" or not isinstance(base, dict)):
        return [*faults, f"'{where}.base' is not the place of a model"]
    return faults if base is None else faults + _origin_faults(base, f"{where}.base")


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings record in the video file ``path``; OutputError that says what is wrong if there is none."""
    from glimt.video.mp4 import import_av

    name = os.fspath(path)
    if not Path(name).exists():
        raise OutputError(f"{name}: there is no such file")
    if not Path(name).is_file():
        raise OutputError(f"{name}: this is not a file")
    av = import_av()
    try:
        with av.open(f"file:{name}", metadata_errors="replace") as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        raise OutputError(f"{name}: this is not a video file that can be read ({error.strerror})") from error
    if "comment" not in tags:
        raise OutputError(
            f"{name}: there is no settings record in this file; either glimt did not write it, "
            "or another program has removed the comment tag since"
        )
    return parse_record(tags["comment"], name)

"""``glimt reproduce``: make the frames of a video again from the record in the file, and say whether they are the same.

Compared is the SHA-256 of the frames before encoding, so the encoder and its version play no part.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from glimt.cli.asking import engine_config, opened
from glimt.cli.outcome import Outcome
from glimt.cli.progress import Progress, progress
from glimt.errors import CheckpointError
from glimt.request import GenerateRequest
from glimt.weights.origin import Origin

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glimt.config import EngineConfig
    from glimt.engine import Engine

# What a record may decide here. Whether to run pickles or to use the network is not for a file to say.
_RECORDED_SETTINGS = ("device", "dtype", "precision", "backend", "quality")


def run(namespace: argparse.Namespace) -> Outcome:
    """Exit code 0 if the frames are identical, 1 if they are not, and what is not as it was."""
    from glimt.video.record import read_record

    record = read_record(namespace.file)
    request = _request(record)
    settings = record.get("config", {})
    names = (*_RECORDED_SETTINGS, "tiny_decoder") if request.decoder == "tiny" else _RECORDED_SETTINGS
    config = engine_config(namespace, {name: settings[name] for name in names if settings.get(name) is not None})
    began = time.perf_counter()
    engine = _open(namespace, Origin.from_dict(record["model"]), config)
    with progress(namespace.quiet) as show:
        show.begin("check", began=began)
        differences = _differences(record, engine.provenance(request))
        show.end()
        same_model = not any(line.startswith("model") for line in differences)
        made, ran = _made(engine, request, show) if same_model or namespace.anyway else (None, None)
    if ran is not None:
        differences += _changes("implementations", record["implementations"], ran)
    result = {
        "file": namespace.file,
        "identical": made == record["frames"]["sha256"],
        "frames": record["frames"],
        "made": made,
        "differences": differences,
    }
    return Outcome("\n".join(_lines(result)), result, 0 if result["identical"] else 1)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    count, sha256 = result["frames"]["count"], result["frames"]["sha256"]
    if result["identical"]:
        yield f"identical: all {count} frames are those of {result['file']} (sha256 {sha256[:16]})"
    elif result["made"] is None:
        yield f"not reproduced: another {result['differences'][0]}; --anyway runs it nevertheless"
    else:
        yield f"different: the {count} frames are not those of {result['file']}"
        yield from (f"  {line}" for line in result["differences"])
        if not result["differences"]:
            yield "  all that the record tells is the same; the number of threads may be another one"


def _request(record: dict[str, Any]) -> GenerateRequest:
    return dataclasses.replace(GenerateRequest.from_dict(record["request"]), preview_every=0, preview="auto")


def _open(namespace: argparse.Namespace, recorded: Origin, config: EngineConfig) -> Engine:
    """The model that was named, else that of the record, where the record says it was."""
    if namespace.model is not None:
        return opened(namespace, namespace.model, namespace.base, config)
    base = namespace.base or (recorded.base.again() if recorded.base else None)
    try:
        return opened(namespace, recorded.again(), base, config)
    except CheckpointError as error:
        parts = f"{recorded.source!r}" + (f" with the base {recorded.base.source!r}" if recorded.base else "")
        options = "--model and --base" if recorded.base else "--model"
        hint = f"the record names the model {parts}: if it has another place here, say where with {options}"
        raise CheckpointError(*error.problems[:-1], f"{error.problems[-1]}\n{hint}") from error


def _differences(record: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What is not as it was when the video was made, as far as it is known before a run; the model first."""
    found = []
    was, now = record["model"], here["model"]
    if was["digest"] != now["digest"]:
        parts = _changed(was.get("components", {}), now.get("components", {}))
        which = f" in {', '.join(parts)}" if parts else ""
        found.append(
            f"model: this one ({now['name']}, {now['digest'][:12]}) is not the recorded one"
            f" ({was.get('name')}, {was['digest'][:12]}); they differ{which}"
        )
    found += _changes("config", record.get("config", {}), here["config"], _RECORDED_SETTINGS)
    return found + _changes("versions", record["versions"], here["versions"])


def _changes(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any], among: tuple[str, ...] | None = None
) -> list[str]:
    return [
        f"{kind}: {name} was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
        for name in _changed(before, after, among)
    ]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], among: tuple[str, ...] | None = None) -> list[str]:
    names = sorted({*before, *after}) if among is None else among
    return [name for name in names if before.get(name) != after.get(name)]


def _made(engine: Engine, request: GenerateRequest, show: Progress) -> tuple[str, Mapping[str, str] | None]:
    """SHA-256 of the frames made anew, and the implementations that ran."""
    from glimt.cli.following import follow, warn

    plan = engine.plan(request)
    warn(plan, show)
    digest = hashlib.sha256()

    def add(_variant: int, frames: npt.NDArray[np.uint8]) -> None:
        digest.update(frames.tobytes())

    report = follow(engine, plan.request, show, add)
    return digest.hexdigest(), None if report is None else report.implementations

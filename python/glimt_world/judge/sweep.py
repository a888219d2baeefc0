"""Many clips judged in a row: ground-truth renders, or a model's clips of held-out captions."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glimt_world.judge.damage import damaged, psnr
from glimt_world.judge.reading import read_clip
from glimt_world.judge.verdict import Check, Rate, Stated, accuracy, compare, verdict

Frames = npt.NDArray[np.uint8]
EVERY = 20  # clips between two lines of progress
SHEET_ROWS = 24


@dataclass
class Tally:
    """What a sweep found so far, clip by clip. ``captions``: what each was made from. ``shown``: (caption, verdict
    line, frames) of the first clips, for a sheet."""

    results: list[dict[str, bool | None]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    mistakes: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str, Frames]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    judging_s: float = 0.0

    def add(self, checks: list[Check], caption: str) -> None:
        self.results.append(verdict(checks))
        self.captions.append(caption)
        for check in checks:
            if check.right is False:
                self.mistakes[f"{check.attribute.split(' ')[0]}: {check.stated} read as {check.found}"] += 1
        if len(self.results) % EVERY == 0:
            self._tell()

    def rates(self) -> dict[str, Rate]:
        return accuracy(self.results, self.captions)

    def show(self, text: str, checks: list[Check], frames: Frames) -> None:
        if len(self.shown) < SHEET_ROWS:
            wrong = [f"{c.attribute}: {c.stated}, read as {c.found}" for c in checks if c.right is False]
            self.shown.append((text, "; ".join(wrong) or "all right", frames))

    def judge(self, frames: Frames, stated: Stated) -> list[Check]:
        before = time.perf_counter()
        checks = compare(read_clip(frames), stated)
        self.judging_s += time.perf_counter() - before
        return checks

    def _tell(self) -> None:
        rates = self.rates()
        words = " ".join(f"{name} {100 * r.value:.1f}" for name, r in rates.items() if r.total)
        seconds = time.perf_counter() - self.started
        print(f"{len(self.results)} clips, {seconds:.0f} s: {words}", file=sys.stderr, flush=True)

    def summary(self) -> dict[str, Any]:
        """Everything as values that JSON can hold."""
        rates = self.rates()
        attributes = {
            name: {"right": r.right, "total": r.total, "rate": r.value if r.total else None, "interval": r.interval}
            for name, r in rates.items()
        }
        return {"clips": len(self.results), "attributes": attributes, "mistakes": dict(self.mistakes.most_common())}


def ground_truth(count: int, *, seed: int = 0, damage: bool = False) -> tuple[Tally, float | None]:
    """Judge ``count`` random renders, damaged to about 30 dB if asked; also their mean PSNR then."""
    from glimt_world.render import render
    from glimt_world.scene import draw_scene

    rng, tally, quality = np.random.default_rng(seed), Tally(), []
    for index in range(count):
        scene = draw_scene(rng)
        frames = render(scene)
        if damage:
            bad = damaged(frames, np.random.default_rng([seed, index]))
            quality.append(psnr(frames, bad))
            frames = bad
        checks = tally.judge(frames, scene)
        words = " and ".join(f"{t.colour} {t.shape} {t.motion}" for t in scene.things)
        tally.show(f"{words}; floor {scene.floor}, sky {scene.sky}, camera {scene.camera}", checks, frames)
        tally.add(checks, f"scene {index}")
    return tally, float(np.mean(quality)) if quality else None


@dataclass(frozen=True)
class ModelSweep:
    """Which clips of which model: ``captions`` held-out captions, each with seeds 0 to ``seeds`` - 1."""

    model: str
    captions: int
    seeds: int
    steps: int | None = None
    guidance: float | None = None

    def clips(self) -> Iterator[tuple[int, Any]]:
        """(seed, caption): every caption with one seed before the next seed, so that a part is a fair sample."""
        from glimt_world.captions import held_out

        captions = held_out(self.captions)
        for seed in range(self.seeds):
            for caption in captions:
                yield seed, caption


def of_model(sweep: ModelSweep, generate: Callable[[str, int], Frames], log: Path | None) -> Tally:
    """Judge a model's clips. ``generate(text, seed)`` makes one; with ``log`` (JSON lines) what it already holds for
    the same settings is taken from there, and each new clip is added as soon as it is judged."""
    key = {"model": sweep.model, "steps": sweep.steps, "guidance": sweep.guidance}
    known = _known(log, key)
    tally = Tally()
    for seed, caption in sweep.clips():
        checks = known.get((caption.text, seed))
        if checks is None:
            frames = generate(caption.text, seed)
            checks = tally.judge(frames, caption)
            tally.show(caption.text, checks, frames)
            if log is not None:
                line = {**key, "text": caption.text, "seed": seed, "checks": [asdict(c) for c in checks]}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        tally.add(checks, caption.text)
    return tally


def _known(log: Path | None, key: dict[str, Any]) -> dict[tuple[str, int], list[Check]]:
    if log is None or not log.exists():
        return {}
    out: dict[tuple[str, int], list[Check]] = {}
    try:
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            if all(line[name] == value for name, value in key.items()):
                out[line["text"], line["seed"]] = [Check(**check) for check in line["checks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{log}: line {len(out) + 1} or a later one is not of a sweep's log; remove it to go on"
        ) from error
    return out


def sheet(shown: list[tuple[str, str, Frames]], path: Path, *, columns: int = 6) -> None:
    """A contact sheet: for each clip its caption, its verdict and ``columns`` frames from first to last."""
    from PIL import Image, ImageDraw

    if not shown:
        raise ValueError("no clip was generated in this run, so there is nothing to put on the sheet")
    height, width = shown[0][2].shape[1:3]
    line = 14
    picture = Image.new("RGB", (columns * width, len(shown) * (height + 2 * line)), "white")
    pen = ImageDraw.Draw(picture)
    for row, (text, words, frames) in enumerate(shown):
        top = row * (height + 2 * line)
        pen.text((2, top), text, fill="black")
        pen.text((2, top + line - 2), words, fill="darkgreen" if words == "all right" else "firebrick")
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            picture.paste(Image.fromarray(frames[index]), (column * width, top + 2 * line))
    picture.save(path)

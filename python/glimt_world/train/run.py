"""What every training stage shares: checkpoints that a killed run resumes from, a log, an average of the weights."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Trainer(Protocol):
    """A stage of training, as :func:`drive` runs it."""

    def parts(self) -> dict[str, Any]:
        """Everything that a resume needs, by name; each has ``state_dict`` and ``load_state_dict``."""

    def step(self, step: int, progress: float) -> dict[str, float]:
        """One update at ``progress`` in [0, 1] of the run; what to average and log."""

    def sheet(self, path: Path) -> None:
        """Draw what the weights can do by now."""


REPORT_STEPS, SAVE_STEPS, SHEET_MINUTES = 30, 250, 15.0


def drive(trainer: Trainer, folder: Path, *, minutes: float) -> None:
    """Train for ``minutes`` of wall time in all: the schedule follows time, and a run that was killed counts on.

    ``folder`` gets ``state.pt`` (replaced as a whole), ``log.jsonl`` (a line per report, also printed) and a sheet of
    samples every quarter of an hour and at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    parts = {**trainer.parts(), "clock": clock}
    step = _resume(folder, parts)
    drawn = clock.minutes
    recent: list[dict[str, float]] = []
    while clock.minutes < minutes:
        started = time.monotonic()
        torch.manual_seed(step)  # a resumed run does not repeat the noise of its beginning
        recent.append(trainer.step(step, clock.minutes / minutes))
        step += 1
        clock.minutes += (time.monotonic() - started) / 60
        if step % REPORT_STEPS == 0:
            _report(folder, step, clock.minutes, recent)
            recent.clear()
        if step % SAVE_STEPS == 0:
            _save(folder, step, parts)
        if clock.minutes - drawn > SHEET_MINUTES:
            trainer.sheet(folder / f"sheet-{step:06d}.png")
            drawn = clock.minutes
    _save(folder, step, parts)
    trainer.sheet(folder / f"sheet-{step:06d}.png")


def _resume(folder: Path, parts: dict[str, Any]) -> int:
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _save(folder: Path, step: int, parts: dict[str, Any]) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **state}, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")


def _report(folder: Path, step: int, minutes: float, recent: list[dict[str, float]]) -> None:
    """Means over the steps since the last report of every value that any of them gave."""
    means: dict[str, float] = {"step": step, "minutes": round(minutes, 2)}
    for name in sorted({name for values in recent for name in values}):
        found = [values[name] for values in recent if name in values]
        means[name] = round(sum(found) / len(found), 4)
    line = json.dumps(means)
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


class Average:
    """Exponential moving average of a module's weights, with the usual warm-up ``min(decay, (1 + n) / (10 + n))``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)

    def copy_of(self, module: M) -> M:
        """``module`` with the averaged weights; the module itself stays as it is."""
        averaged = copy.deepcopy(module)
        averaged.load_state_dict(self.weights)
        return averaged.eval()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)  # in place: the saved ones lie on the CPU, these may not


class Clock:
    """Training minutes so far, kept across resumes."""

    def __init__(self) -> None:
        self.minutes = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"minutes": self.minutes}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.minutes = float(state["minutes"])


def learning_rate(progress: float, peak: float, *, warmup: float = 0.02, decay: float = 0.35) -> float:
    """Linear warm-up, a plateau, and a linear decay to 1 % over the last ``decay`` of the run; progress in [0, 1]."""
    if progress < warmup:
        return peak * max(progress, 1e-4) / warmup
    if progress < 1 - decay:
        return peak
    return peak * max(0.01, (1 - progress) / decay)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]."""
    error = torch.mean((a - b).float() ** 2).item()
    return 10 * math.log10(4 / max(error, 1e-12))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate

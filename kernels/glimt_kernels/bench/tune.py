"""Which implementation is fastest here, at given shapes: what ``glimt tune`` stores for ``dispatch.select``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glimt_kernels import dispatch, tuned
from glimt_kernels.bench.compare import judge
from glimt_kernels.bench.ops import build, build_call
from glimt_kernels.bench.settings import DTYPES, BenchError, Settings
from glimt_kernels.bench.shapes import SHAPES
from glimt_kernels.bench.timing import Clock
from glimt_kernels.bench.workload import Run, Workload, candidates, lossy, unsupported

Calls = Iterable[tuple[str, tuple[Any, ...]]]


class Job(NamedTuple):
    """A workload that is still to be made: its name, that of its shape or model, and what makes it."""

    workload: str
    shape: str
    make: Callable[[], Workload]


# The built-in choice stays unless another is faster by more than this: less is noise.
MARGIN = 0.03


@dataclass(frozen=True)
class Trial:
    """One workload.

    Attributes:
        workload, shape: what was timed. ``key``: what calls like it are known by.
        built_in: what runs where nothing is tuned.
        median_ms: of each implementation that is right, fastest first.
        refused: why others were not timed.
    """

    workload: str
    shape: str
    key: str
    built_in: str
    median_ms: Mapping[str, float]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        fastest = next(iter(self.median_ms))
        kept = self.median_ms.get(self.built_in)
        return self.built_in if kept is not None and kept <= self.median_ms[fastest] * (1 + MARGIN) else fastest

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "best": self.best}

    def __str__(self) -> str:
        times = ", ".join(f"{impl} {ms:.3f} ms" for impl, ms in self.median_ms.items())
        was = "" if self.best == self.built_in else f" (built in: {self.built_in})"
        return f"{self.workload}, {self.shape}: {self.best}{was}; {times}"


def tune(
    settings: Settings, calls: Mapping[str, Calls] | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[list[Trial], Path]:
    """Time the candidates of every op that ``settings`` names and keep the choice.

    Args:
        calls: of models, by name: ops and their arguments in schema order. Without them: the workloads of the
            benchmark at the shapes that ``settings`` names.

    Returns:
        What was found, and the file that it was added to.

    Raises:
        BenchError: tuned choices are switched off.
    """
    device = settings.torch_device
    if tuned.path_of(device) is None:
        raise BenchError(f"{tuned.VARIABLE} is off: unset it, or set it to a folder, to keep what is found")
    trials = []
    for found in _trials(settings, _of_shapes(settings) if calls is None else _of_calls(settings, calls)):
        say(str(found))
        if isinstance(found, Trial):
            trials.append(found)
    return trials, tuned.write(device, choices(trials))


def choices(trials: Sequence[Trial]) -> dict[str, str]:
    """One implementation a key: of several workloads with the same key, the one with the least time in sum, each
    workload's counted in units of its fastest."""
    found = {}
    for key in dict.fromkeys(trial.key for trial in trials):
        mine = [trial for trial in trials if trial.key == key]
        if len(mine) == 1:
            found[key] = mine[0].best
            continue
        common = [impl for impl in mine[0].median_ms if all(impl in trial.median_ms for trial in mine)]
        if common:
            found[key] = min(common, key=lambda impl: sum(_slower(trial, impl) for trial in mine))
    return found


def _slower(trial: Trial, impl: str) -> float:
    return trial.median_ms[impl] / min(trial.median_ms.values())


def _of_shapes(settings: Settings) -> Iterator[Job]:
    for name in settings.shape_names:
        for op in settings.workloads:
            dtype, device = DTYPES[settings.dtype_name], settings.torch_device
            yield Job(op, name, partial(build, op, name, SHAPES[name], dtype, device))


def _of_calls(settings: Settings, calls: Mapping[str, Calls]) -> Iterator[Job]:
    """Each key once: calls of one key share a choice, and the last is as good as any."""
    asked = {workload.partition("/")[0] for workload in settings.workloads}
    for name, made in calls.items():
        by_key = {tuned.key(op, args): (op, args) for op, args in made if op in asked}
        for op, args in by_key.values():
            yield Job(op, name, partial(build_call, op, name, args, settings.torch_device))


def _trials(settings: Settings, jobs: Iterable[Job]) -> Iterator[Trial | str]:
    """Of every workload for whose op there is a choice, or why one could not be timed."""
    clock = Clock(settings.torch_device)
    for job in jobs:
        torch.manual_seed(0)
        try:
            trial = _trial(job.workload, job.make(), clock, settings)
        except torch.OutOfMemoryError:
            yield f"{job.workload}, {job.shape}: not timed, the device's memory is too small for it"
            continue
        if trial is not None:
            yield trial


@torch.inference_mode()
def _trial(name: str, workload: Workload, clock: Clock, settings: Settings) -> Trial | None:
    """None where at most one candidate can run."""
    runs = _able(workload)
    if len(runs) < 2:
        return None
    rows = judge(workload, runs)
    refused = {impl: str(row["refused"]) for impl, row in rows.items() if "refused" in row}
    calls = {impl: (lambda run=run: run(*workload.args)) for impl, run in runs.items() if impl not in refused}
    if not calls:
        return None
    timings = clock.compare(calls, settings.repeats, settings.limit_s)
    times = {impl: timing.median_ms for impl, timing in timings.items()}
    ranked = dict(sorted(times.items(), key=lambda item: item[1]))
    case = dispatch.find(workload.op).case(workload.args)._replace(tuned="")
    built_in = dispatch.built_in(workload.op, case).impl
    return Trial(name, workload.shape, tuned.key(workload.op, workload.args), built_in, ranked, refused)


def _able(workload: Workload) -> dict[str, Run]:
    """Those that can run; on a GPU without the reference, which is not meant for large inputs."""
    on_cpu = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in workload.args)
    return {
        candidate.impl: candidate.run
        for candidate in candidates(workload)
        if candidate.impl not in lossy(workload)
        and (on_cpu or candidate.impl != "reference")
        and not unsupported(workload, candidate)
    }

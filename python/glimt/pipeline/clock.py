"""The account of one run: time and memory of each stage, what to tell the caller, and the report in the end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from glimt.env import peak_rss_bytes, rss_bytes
from glimt.pipeline.events import StageEvent
from glimt.plan import GenerationPlan
from glimt.plan.ops import by_op
from glimt.report import RunReport, StageReport
from glimt_kernels.dispatch import Record

T = TypeVar("T")
R = TypeVar("R")


class Clock:
    """Local to one run. Time that a consumer of the events takes is counted in the whole, not in the stage.

    Attributes:
        record: every choice of an implementation, filled while the run goes on.
    """

    def __init__(self, plan: GenerationPlan) -> None:
        self.record: Record = {}
        self._plan = plan
        self._began = time.perf_counter()
        self._seconds = {stage.name: 0.0 for stage in plan.stages}
        self._peaks = {stage.name: 0 for stage in plan.stages}
        self.previews = ""  # what makes them, and where that came from

    def begin(self, stage: str, variant: int = 0, note: str = "") -> StageEvent:
        return StageEvent(stage, "begin", self._elapsed_ms(), variant, note)

    def end(self, stage: str, variant: int = 0) -> StageEvent:
        ran = {choice.op: choice.impl for choice in by_op(self.record.values())}
        return StageEvent(stage, "end", self._elapsed_ms(), variant, implementations=ran)

    def done(self) -> StageEvent:
        """The last event of a run."""
        return StageEvent("done", "end", self._elapsed_ms(), report=self._report())

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Count what happens inside as this stage's."""
        start, high = time.perf_counter(), _high_water_bytes(self._plan.device)
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start
            raised = _high_water_bytes(self._plan.device)
            seen = raised if raised > high else _memory_bytes(self._plan.device)
            self._peaks[stage] = max(self._peaks[stage], seen)

    def timed(self, stage: str, items: Generator[T, None, R]) -> Generator[T, None, R]:
        """The same items, each one's making counted as this stage's; closing this closes them."""
        try:
            while True:
                with self.timing(stage):
                    try:
                        item = next(items)
                    except StopIteration as stop:
                        return stop.value
                yield item
                del item
        finally:
            items.close()

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000

    def _report(self) -> RunReport:
        stages = tuple(
            StageReport(s.name, self._seconds[s.name] * 1000, s.seconds, self._peaks[s.name], s.peak_bytes)
            for s in self._plan.stages
        )
        ops = by_op(self.record.values())
        return RunReport(
            stages=stages,
            total_ms=self._elapsed_ms(),
            peak_rss_bytes=peak_rss_bytes(),
            implementations={choice.op: choice.impl for choice in ops},
            decode=self._plan.decoding,
            fallbacks=tuple(line for choice in ops for line in choice.passed_over),
            notes=self._plan.notes,
            ops=ops,
            decoder=self._plan.request.decoder,
            previews=self.previews,
        )


def _high_water_bytes(device: str) -> int:
    """The most memory there has been in use since the process began."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_rss_bytes()


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device)
    return rss_bytes()

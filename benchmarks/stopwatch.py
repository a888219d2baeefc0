"""Wall and processor time of named spans. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Span:
    """Seconds on the wall, and seconds of processor time of all threads of this process."""

    wall_s: float
    cpu_s: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class Stopwatch:
    """Spans by name; a name that comes again adds up."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self._begun: dict[str, tuple[float, float]] = {}

    def begin(self, name: str) -> None:
        self._begun[name] = (time.perf_counter(), time.process_time())

    def end(self, name: str) -> None:
        wall, cpu = self._begun.pop(name)
        so_far = self.spans.get(name, Span(0.0, 0.0))
        self.spans[name] = Span(so_far.wall_s + time.perf_counter() - wall, so_far.cpu_s + time.process_time() - cpu)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

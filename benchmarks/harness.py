"""Workers, alternation and statistics. One worker computes at a time; the others wait on their stdin."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]


class BenchmarkError(Exception):
    """The benchmark cannot say anything: a worker failed, or the providers do not agree."""


class Worker:
    """A process of its own that holds one provider; see :mod:`benchmarks.worker`."""

    def __init__(self, spec: str, model: str, threads: int) -> None:
        self.spec = spec
        limit = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", spec, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **limit, **quiet},
        )

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send one command and wait for its reply. Raises BenchmarkError with what the worker last said."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(dict(command)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise BenchmarkError(f"{self.spec} failed at {command['do']!r}:\n{self._errors.read()[-2000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process and wait for it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def cpu_used_s() -> float:
    """Processor time of this process and of all workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@dataclass(frozen=True)
class Series:
    """The same quantity, measured in every round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {"median": self.median, "min": self.low, "max": self.high, "values": list(self.values)}


@dataclass(frozen=True)
class Ratio:
    """How many times as much the other needs as ours.

    Attributes:
        median: of the medians: the number to quote.
        low, high: of the rounds taken one by one; what slows the machine down slows both sides of a round.
    """

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(ours: Series, other: Series) -> Ratio:
    """``other / ours``, round by round and of the medians. Raises ValueError unless both have the same rounds."""
    rounds = [_over(b, a) for a, b in zip(ours.values, other.values, strict=True)]
    return Ratio(_over(other.median, ours.median), min(rounds), max(rounds))


def _over(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


def series(rows: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """From one mapping a round to one series a name, for names that every round has."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {name: Series(tuple(float(row[name]) for row in rows)) for name in names}


def order(names: Sequence[str], round_index: int) -> list[str]:
    """Who goes first alternates: A B, B A, A B, ... so that no drift of the machine favours one."""
    shift = round_index % len(names)
    return [*names[shift:], *names[:shift]]

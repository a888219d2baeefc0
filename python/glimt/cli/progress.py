"""Progress on standard error: a bar for each stage on a terminal, plain lines elsewhere.

with progress(quiet=False) as show:
    show.begin("denoise", "steps"); show.update(3, 20, eta_s=12.5); show.end()
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_PLAIN_EVERY_S = 2.0
_MOST_BARS = 12


class Progress:
    """What both kinds share: the stage that is under way, and how long it has taken. Shows nothing of it by itself."""

    def __init__(self) -> None:
        self.stage = ""
        self._began = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()

    def begin(self, stage: str, unit: str = "", began: float | None = None) -> None:
        """A stage begins, and with it the one before ends. ``unit`` is what is counted, as "steps"; ``began`` is by
        ``time.perf_counter`` when it really began, where that was before it could be shown."""
        self.end()
        self.stage, self._began = stage, time.perf_counter() if began is None else began
        self._show_begin(unit)

    def update(self, done: int, total: int, eta_s: float | None = None) -> None:
        """``done`` of ``total`` units are there; ``eta_s`` seconds are left (measured here when ``None``)."""
        if eta_s is None:
            eta_s = (time.perf_counter() - self._began) / max(done, 1) * (total - done)
        self._show_update(done, total, eta_s)

    def end(self) -> None:
        """The stage, if there is one, is over."""
        if self.stage:
            self._show_end(time.perf_counter() - self._began)
        self.stage = ""

    def say(self, line: str) -> None:
        """One line that is no progress but has to be known, and so is written also where none is shown."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _show_begin(self, unit: str) -> None: ...

    def _show_update(self, done: int, total: int, eta_s: float) -> None: ...

    def _show_end(self, elapsed_s: float) -> None: ...


class PlainProgress(Progress):
    """Lines for logs and pipes: each stage with its time, and now and then how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self._unit = ""
        self._last_line = 0.0

    def _show_begin(self, unit: str) -> None:
        self._unit, self._last_line = unit, time.perf_counter()

    def _show_update(self, done: int, total: int, eta_s: float) -> None:
        now = time.perf_counter()
        if done >= total or now - self._last_line < _PLAIN_EVERY_S:
            return
        self._last_line = now
        self.say(f"{self.stage}: {done}/{total} {self._unit}, {duration(eta_s)} left")

    def _show_end(self, elapsed_s: float) -> None:
        self.say(f"{self.stage}: done in {duration(elapsed_s)}")


class RichProgress(Progress):
    """A bar for each stage, with its count and the time left, then the time it took."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        super().__init__()
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]\u2713"),
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._unit = ""

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._bars.stop()

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

    def _show_begin(self, unit: str) -> None:
        self._unit = unit
        self._task = self._bars.add_task(self.stage, total=None, note="")
        for task in self._bars.tasks[:-_MOST_BARS]:
            self._bars.update(task.id, visible=False)

    def _show_update(self, done: int, total: int, eta_s: float) -> None:
        note = f"{done}/{total} {self._unit}, {duration(eta_s)} left"
        self._bars.update(self._task, completed=done, total=total, note=note)

    def _show_end(self, elapsed_s: float) -> None:
        self._bars.update(self._task, completed=1, total=1, note=duration(elapsed_s))


def progress(quiet: bool = False) -> Progress:
    """The progress that suits where standard error goes."""
    if quiet:
        return Progress()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def duration(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3:05``, ``1:02:03``."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

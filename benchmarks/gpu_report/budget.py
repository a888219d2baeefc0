"""A time budget that holds: a part that is still running when its time is over is stopped where it stands."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(BaseException):
    """The part's time is over. Not an Exception, so that nobody takes it for a provider's fault."""


class Budget:
    """Seconds from now, of which ``used_s`` are over. Each part may run until its own share of them has passed, counted
    from the beginning."""

    def __init__(self, seconds: float, used_s: float = 0.0) -> None:
        self.seconds = seconds
        self._began = time.monotonic() - used_s

    def used_s(self) -> float:
        return time.monotonic() - self._began

    @contextmanager
    def until(self, share: float) -> Iterator[None]:
        """Raise OutOfTime inside once ``share`` of the budget is used; at once if it is."""
        left = share * self.seconds - self.used_s()
        if left <= 0:
            raise OutOfTime
        before = signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise OutOfTime

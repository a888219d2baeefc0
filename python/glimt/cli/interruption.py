"""Ctrl-C and SIGTERM: both unwind through the ``with`` blocks that remove unfinished files.

The exception alone is not enough: one raised while some library is in a callback that cannot pass it on is lost. So the
wish to stop is remembered as well, and looked at after every event of a run.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143
_WORDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


class Interrupted(KeyboardInterrupt):
    """The user, or who runs the process, wants it to end. ``code`` is the exit code that says so."""

    def __init__(self, code: int = INTERRUPTED) -> None:
        super().__init__(f"{_WORDS[code]}; unfinished files were removed")
        self.code = code


_wish: list[int] = []  # the exit code of the signal that came, if one did


def check() -> None:
    """Raise Interrupted if the process was asked to end, even if the exception of that moment was lost."""
    if _wish:
        raise Interrupted(_wish[0])


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """While this lasts, SIGINT and SIGTERM raise Interrupted in the main thread and are remembered."""

    def handle(number: int, _frame: FrameType | None) -> None:
        _wish.append(INTERRUPTED if number == signal.SIGINT else TERMINATED)
        raise Interrupted(_wish[-1])

    _wish.clear()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = [signal.signal(number, handle) for number in numbers]
    except ValueError:  # not in the main thread, where signals are someone else's business
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)

"""What a command comes to: the exit code, and what there is to say in words and as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """``text`` and ``result`` say the same, for people and for programs."""

    text: str
    result: dict[str, Any]
    code: int = 0

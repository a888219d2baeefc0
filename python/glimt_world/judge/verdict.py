"""A clip against what its caption states: verdicts per attribute, and their rates over many clips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from glimt_world.judge.reading import Found, Reading, read_clip

THING_ATTRIBUTES = ("colour", "shape", "motion")
SCENE_ATTRIBUTES = ("floor", "sky", "camera")
# The rows of a table of rates, in order. "count": as many things as stated.
ATTRIBUTES = (*THING_ATTRIBUTES, *SCENE_ATTRIBUTES, "count", "all_right")


class StatedThing(Protocol):
    """What is stated of one thing; ``None`` where nothing is."""

    @property
    def colour(self) -> str | None: ...
    @property
    def shape(self) -> str | None: ...
    @property
    def motion(self) -> str | None: ...


class Stated(Protocol):
    """What is stated of a clip: a ``Caption`` or a whole ``Scene``."""

    @property
    def things(self) -> Sequence[StatedThing]: ...
    @property
    def floor(self) -> str | None: ...
    @property
    def sky(self) -> str | None: ...
    @property
    def camera(self) -> str | None: ...


@dataclass(frozen=True)
class Check:
    """One attribute: what was stated and what was found (``None``: nothing stated, or no such thing found)."""

    attribute: str
    stated: str | None
    found: str | None

    @property
    def right(self) -> bool | None:
        return None if self.stated is None else self.stated == self.found


@dataclass(frozen=True)
class Rate:
    """``right`` out of ``total``, with the Wilson score interval at 95 % (clips taken as independent)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with z = 1.96; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        middle = p + z * z / (2 * n)
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))


def compare(reading: Reading, stated: Stated) -> list[Check]:
    """Every attribute of the statement against the reading; things are matched so that most is right.

    A thing's attributes are named "colour 1", "shape 1", "motion 1", "colour 2", ... in the order of the statement.
    """
    checks: list[Check] = []
    for number, (thing, found) in enumerate(zip(stated.things, _matched(reading, stated), strict=True), 1):
        checks += [Check(f"{n} {number}", getattr(thing, n), getattr(found, n, None)) for n in THING_ATTRIBUTES]
    checks += [Check(name, getattr(stated, name), getattr(reading, name)) for name in SCENE_ATTRIBUTES]
    checks.append(Check("count", str(len(stated.things)), str(len(reading.things))))
    return checks


def _matched(reading: Reading, stated: Stated) -> list[Found | None]:
    """For each stated thing the found one that is taken for it."""
    wanted = stated.things
    found: list[Found | None] = [*reading.things[:5], *([None] * len(wanted))]

    def rightness(order: tuple[int, ...]) -> float:
        total = 0.0
        for thing, index in zip(wanted, order, strict=True):
            candidate = found[index]
            if candidate is not None:
                # Colour tells best which one is meant; any thing is better than none.
                weights = {"colour": 1.2, "shape": 1.0, "motion": 1.0}
                total += 0.01 + sum(w for n, w in weights.items() if getattr(candidate, n) == getattr(thing, n))
        return total

    best = max(permutations(range(len(found)), len(wanted)), key=rightness)
    return [found[index] for index in best]


def verdict(checks: Iterable[Check]) -> dict[str, bool | None]:
    """Attribute to right, wrong or not stated; "all_right": whether all that was stated is right."""
    out = {check.attribute: check.right for check in checks}
    out["all_right"] = all(right is not False for right in out.values())
    return out


def judge_clip(frames: npt.NDArray[np.uint8], expected: Stated) -> dict[str, bool | None]:
    """Whether the clip (uint8 [F, H, W, 3] RGB) shows what ``expected`` states, per attribute; see ``compare``."""
    return verdict(compare(read_clip(frames), expected))


def accuracy(results: Iterable[Mapping[str, bool | None]]) -> dict[str, Rate]:
    """Rates over many verdicts. Things' attributes count per thing ("colour 1" and "colour 2" both as "colour")."""
    right: dict[str, int] = dict.fromkeys(ATTRIBUTES, 0)
    total: dict[str, int] = dict.fromkeys(ATTRIBUTES, 0)
    for result in results:
        for name, value in result.items():
            name = name.split(" ")[0]
            if value is not None:
                total[name] += 1
                right[name] += bool(value)
    return {name: Rate(right[name], total[name]) for name in ATTRIBUTES}


def table(rates: Mapping[str, Rate]) -> str:
    """Rates as lines of text."""
    lines = [f"{'attribute':<10} {'right':>6} {'of':>6} {'%':>7}   95 % interval"]
    for name, rate in rates.items():
        low, high = rate.interval
        share = f"{100 * rate.value:7.2f}" if rate.total else "      -"
        label = name.replace("_", " ")
        lines.append(f"{label:<10} {rate.right:>6} {rate.total:>6} {share}   {100 * low:.1f} - {100 * high:.1f}")
    return "\n".join(lines)

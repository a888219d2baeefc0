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
    """How often something is right, with an interval at 95 % over captions such as these.

    ``captions``: for each caption how many of its verdicts are right, and how many there are. Seeds of one caption and
    things of one clip are alike: a caption that is hard goes wrong with every seed. So captions are taken as
    independent, their verdicts are not, and the interval is Wilson's for the number of independent verdicts that would
    tell as much: their number over the design effect, which is the variance of the rate between captions over that of
    as many independent verdicts (Kish 1965; with Wilson's interval: Kott and Carr 1997). It is exact in the long run;
    below some 20 captions it is a little narrow.
    """

    captions: tuple[tuple[int, int], ...]

    @property
    def right(self) -> int:
        return sum(right for right, _ in self.captions)

    @property
    def total(self) -> int:
        return sum(total for _, total in self.captions)

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @property
    def independent(self) -> float:
        """How many independent verdicts tell as much: at most ``total``, which it is where each caption has one.

        Where all are right, or none is, nothing shows how alike those of one caption are: then as many as captions.
        """
        count, n, p = len(self.captions), self.total, self.value
        if count < 2 or self.right in (0, n):
            return float(count)
        between = count / (count - 1) * sum((right - total * p) ** 2 for right, total in self.captions)
        design_effect = between / (n / (n - 1) * n * p * (1 - p))
        return n / max(1.0, design_effect)

    @property
    def interval(self) -> tuple[float, float]:
        """``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``, z = 1.96, n as above; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.independent, self.value
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


def accuracy(results: Iterable[Mapping[str, bool | None]], captions: Iterable[str] | None = None) -> dict[str, Rate]:
    """Rates over many verdicts. Things' attributes count per thing ("colour 1" and "colour 2" both as "colour").

    Args:
        captions: what each clip was made from; ``None`` if no two were made from the same.
    """
    found: dict[str, dict[str | int, list[bool]]] = {name: {} for name in ATTRIBUTES}
    pairs = enumerate(results) if captions is None else zip(captions, results, strict=True)
    for caption, result in pairs:
        for name, value in result.items():
            if value is not None:
                found[name.split(" ")[0]].setdefault(caption, []).append(value)
    return {
        name: Rate(tuple((sum(verdicts), len(verdicts)) for verdicts in by_caption.values()))
        for name, by_caption in found.items()
    }


def table(rates: Mapping[str, Rate]) -> str:
    """Rates as lines of text."""
    lines = [f"{'attribute':<10} {'right':>6} {'of':>6} {'%':>7}   95 % interval"]
    for name, rate in rates.items():
        low, high = rate.interval
        share = f"{100 * rate.value:7.2f}" if rate.total else "      -"
        label = name.replace("_", " ")
        lines.append(f"{label:<10} {rate.right:>6} {rate.total:>6} {share}   {100 * low:.1f} - {100 * high:.1f}")
    return "\n".join(lines)

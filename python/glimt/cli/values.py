"""What is typed on the command line, as values; every mistake is noted, and all are reported together."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

MAX_RANDOM_SEED = 2**31


class Invalid(NamedTuple):
    """Stands in the place of a value that could not be read, until all of them are reported."""

    reason: str


class Size(NamedTuple):
    """Of a video, in pixels, in the order in which it is typed."""

    width: int
    height: int


def lenient(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """``convert`` as a ``type`` for argparse that notes its ValueError instead of ending at the first."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            return Invalid(str(error))

    return read


class Gather(argparse.Action):
    """Options that may be given several times, each with several values: all count."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, found: Any, *_: Any) -> None:
        before = getattr(namespace, self.dest) or ()
        wrong = [one for one in (before, found) if isinstance(one, Invalid)]
        setattr(namespace, self.dest, wrong[0] if wrong else (*before, *found))


def whole_number(text: str) -> int:
    """An integer. Range and meaning are checked where the model is known."""
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """A finite decimal number."""
    try:
        value = float(text)
    except ValueError:
        hint = "; write the decimal point as '.'" if re.fullmatch(r"\d+,\d+", text.strip()) else ""
        raise ValueError(f"{text!r} is not a number{hint}") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def frame_rate(text: str) -> float:
    """``24``, ``23.976`` or ``24000/1001``."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{text!r} is not a frame rate; write 24, 23.976 or 24000/1001") from None


def seed(text: str) -> int:
    """A whole number, or ``random`` for one drawn now (it is printed, and recorded in the file)."""
    if text.strip().lower() == "random":
        import secrets

        return secrets.randbelow(MAX_RANDOM_SEED)
    return whole_number(text)


def size(text: str) -> Size:
    """``WIDTHxHEIGHT``, as ``832x480``. What sizes there are is checked where the model is known."""
    side = r"\s*([+-]?[0-9]{1,30})\s*"
    match = re.fullmatch(rf"{side}[xX*\u00d7]{side}", text)  # \u00d7 is the multiplication sign
    if not match:
        raise ValueError(f"{text!r} is not a size; write WIDTHxHEIGHT, as 832x480")
    return Size(int(match[1]), int(match[2]))


def bucket(text: str) -> tuple[tuple[int, int, int], ...]:
    """``WIDTHxHEIGHTxFRAMES`` or several with commas between them, each as (height, width, frames)."""
    found = []
    for part in text.split(","):
        side, _, frames = re.sub(r"[X*\u00d7]", "x", part.strip()).rpartition("x")
        try:
            width, height = size(side)
            found.append((height, width, whole_number(frames)))
        except ValueError:
            raise ValueError(f"{part!r} is not a size of clip; write WIDTHxHEIGHTxFRAMES, as 832x480x81") from None
    return tuple(found)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise ValueError(f"{text!r} has a comma with no name beside it")
    return found


def path(text: str) -> Path:
    """Of a file or a folder."""
    from pathlib import Path  # not for --help

    if not text:
        raise ValueError("the path is empty")
    return Path(text)


def byte_count(text: str) -> int:
    """``4GiB``, ``4G`` (the same), ``500MB`` (decimal), or plain bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?b)?|b)?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is not an amount of memory; write 4GiB, 500MB, or a number of bytes")
    amount, prefix, unit = match.groups()
    base = 1000 if unit == "b" else 1024
    exponent = "kmgt".index(prefix) + 1 if prefix else 0
    return round(Fraction(amount) * int(base**exponent))

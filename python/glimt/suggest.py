"""Near names for a word that was not understood."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

from glimt.errors import RequestError

C = TypeVar("C", bound=type)


def nearest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most like ``name`` (case, ``-`` and ``_`` do not count), best first; empty when none is near."""
    from difflib import get_close_matches

    known: dict[str, str] = {}
    for candidate in names:
        known.setdefault(_plain(candidate), candidate)
    found = get_close_matches(_plain(str(name)), list(known), n=limit, cutoff=0.6)
    return [known[match] for match in found]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the end of an error, or ``""`` when no known name is near."""
    found = nearest(name, names)
    return f"; did you mean {' or '.join(repr(match) for match in found)}?" if found else ""


def unknown_names(names: Iterable[object], known: Iterable[str], what: str) -> list[str]:
    """A problem for each of ``names`` that is not ``known``, with the names near it; ``what`` they should be."""
    known = tuple(known)
    return [f"{name}: no such {what}{did_you_mean(str(name), known)}" for name in names if name not in known]


def checked_keywords(what: str) -> Callable[[C], C]:
    """Decorate a dataclass: making one with keywords that are no fields raises RequestError, with near names, and with
    all that the class itself finds wrong."""

    def decorate(cls: C) -> C:
        made = cls.__init__  # type: ignore[misc]  # of this very class
        known = [field.name for field in fields(cls)]

        @functools.wraps(made)
        def init(self: Any, *args: Any, **values: Any) -> None:
            problems = unknown_names(values, known, what)
            try:
                made(self, *args, **{name: value for name, value in values.items() if name in known})
            except RequestError as error:
                raise RequestError(*problems, *error.problems) from None
            except TypeError:
                if not problems:  # else a name that is missing was most likely misspelt
                    raise
            if problems:
                raise RequestError(*problems)

        cls.__init__ = init  # type: ignore[misc]
        return cls

    return decorate


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")

"""Near names for a word that was not understood."""

from __future__ import annotations

from collections.abc import Iterable


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


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")

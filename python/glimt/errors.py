"""The errors glimt raises: each says what was asked, what was found, and what to do.

Bad input is reported whole: ``problems`` lists every one of them, and ``str(error)`` prints the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


class GlimtError(Exception):
    """Base of all errors of this package.

    Args:
        problems: one sentence or more, at least one; sentences and lists of sentences alike.
    """

    problems: tuple[str, ...]

    def __init__(self, *problems: str | Iterable[str]) -> None:
        found: list[str] = []
        for problem in problems:
            found.extend([problem] if isinstance(problem, str) else map(str, problem))
        if not found:
            raise TypeError(f"{type(self).__name__} needs at least one problem to report")
        super().__init__(*found)
        self.problems = tuple(found)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems:", *(f"  - {problem}" for problem in self.problems)])


class RequestError(GlimtError):
    """A request or a configuration that cannot be run. Each problem begins with the field's name."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields at fault (the first word of each problem), in the order reported, each once."""
        words = (re.match(r"\w+", problem) for problem in self.problems)
        return tuple(dict.fromkeys(word[0] for word in words if word))


class CheckpointError(GlimtError):
    """A checkpoint whose folder, keys, shapes, dtypes or bytes are not what they should be."""


class MemoryBudgetError(GlimtError):
    """A request whose planned peak is above the memory budget; says what would fit."""


class NonFiniteError(GlimtError):
    """NaN, infinity, or flat latents in the middle of a run; names the stage, the step and what to do."""


class OutputError(GlimtError):
    """A result that cannot be written: no permission, no such folder, no space."""


class CompileError(GlimtError):
    """A graph or a plan that cannot be made or read, or is not what is asked for; says what differs."""


class KeyMismatchError(CompileError):
    """What was built is not what is asked for.

    Args:
        where: the artifact, or the store.
        differences: field -> (asked, built).
    """

    def __init__(self, where: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        self.where, self.differences = where, dict(differences)
        lines = [f"{field}: asked {asked!r}, built {built!r}" for field, (asked, built) in differences.items()]
        super().__init__(f"{where} was built from another key; these differ:", lines)
        self.args = (where, self.differences)  # so that the error survives pickling

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that differ."""
        return tuple(self.differences)


class MissingDependencyError(GlimtError):
    """An optional package that is not installed.

    Args:
        package: name of the missing package, as it is installed.
        purpose: what it is needed for, as in "write mp4 files".
        install: the command that installs it; ``pip install <package>`` when not given.
    """

    def __init__(self, package: str, purpose: str, install: str = "") -> None:
        self.package = package
        self.install = install or f"pip install {package}"
        super().__init__(f"{package} is needed to {purpose} and is not installed; run: {self.install}")
        self.args = (package, purpose, self.install)  # so that the error survives pickling

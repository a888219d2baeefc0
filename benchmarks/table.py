"""Results as rows, rows as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Ratio, Series, ratio


@dataclass(frozen=True)
class Row:
    """One quantity of ours beside the other's.

    Attributes:
        name: what it is. ``unit``: of both series.
        ours, other: one value a round.
        goal: what ``ratio.median`` (other over ours) should reach, or 0 for none.
        cpu: the ratio of processor times, where they are known.
    """

    name: str
    unit: str
    ours: Series
    other: Series
    goal: float = 0.0
    cpu: Ratio | None = None

    @property
    def ratio(self) -> Ratio:
        return ratio(self.ours, self.other)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; ``None`` without one."""
        return self.ratio.median >= self.goal if self.goal else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours.to_dict(),
            "other": self.other.to_dict(),
            "ratio": self.ratio.to_dict(),
            "cpu_ratio": None if self.cpu is None else self.cpu.to_dict(),
            "goal": self.goal or None,
            "met": self.met,
        }


def markdown(rows: Sequence[Row], ours: str, other: str) -> str:
    """A table: median (least - most) of both, and ratios: of medians (least - most of a round), of processor time."""
    lines = [
        f"| | {ours} | {other} | {other} / {ours} | processor time | goal |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [
            f"{row.name} ({row.unit})",
            _series(row.ours),
            _series(row.other),
            f"**{row.ratio.median:.2f}x** ({row.ratio.low:.2f} - {row.ratio.high:.2f})",
            "" if row.cpu is None else f"{row.cpu.median:.2f}x",
            "" if row.met is None else f"{row.goal:.2f}x {'met' if row.met else '**missed**'}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _series(values: Series) -> str:
    digits = 3 if values.median < 1 else 2 if values.median < 100 else 0
    return f"{values.median:.{digits}f} ({values.low:.{digits}f} - {values.high:.{digits}f})"


def listing(values: Mapping[str, Any]) -> str:
    """Names and values as a Markdown list; mappings on one line."""
    return "\n".join(f"- {name}: {_inline(value)}" for name, value in values.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inline(inner)}" for name, inner in value.items())
    return str(value)

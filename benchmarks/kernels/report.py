"""Rows of the kernel benchmark as Markdown: one table a shape and op, in the order they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

_COLUMNS = ("provider", "ms", "against eager", "TFLOP/s", "GB/s", "share", "error", "peak MiB")
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|---|{'---:|' * (len(_COLUMNS) - 1)}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """All tables, each under a heading."""
    parts = []
    for (op, shape), group in groupby(rows, key=lambda row: (row["op"], row["shape"])):
        members = list(group)
        base = next((row["median_ms"] for row in members if row["provider"] == "eager" and "median_ms" in row), None)
        lines = [_line(row, base) for row in members if "median_ms" in row]
        refused = [f"- {row['provider']}: {row['refused']}" for row in members if "refused" in row]
        parts.append("\n".join([f"## {op}, {shape}", "", _HEAD, *lines, *([""] if refused else []), *refused, ""]))
    return "\n".join(parts)


def _line(row: Mapping[str, Any], base: float | None) -> str:
    cells = [
        row["provider"],
        f"{row['median_ms']:.3f} ({row['p20_ms']:.3f} - {row['p80_ms']:.3f})",
        f"{base / row['median_ms']:.2f}x" if base is not None else "",
        f"{row['tflops']:.2f}",
        f"{row['gbps']:.1f}",
        f"{100 * row['share']:.0f} %",
        f"{row['relative_l2']:.1e}",
        f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else "",
    ]
    return f"| {' | '.join(cells)} |"

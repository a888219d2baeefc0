"""The rows of a report: ``rows.jsonl``, read when a report is resumed, added to as results come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glimt_kernels.bench.compare import append_rows, known_rows

Row = dict[str, Any]
PARTS = ("correctness", "kernels", "forward")


class Rows:
    """Of one folder and one device.

    Raises:
        BenchError: the folder holds rows of another device.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self._device = folder, device
        self._rows = known_rows(folder, device)

    def add(self, part: str, rows: Iterable[Mapping[str, Any]]) -> None:
        new = [{"part": part, **row, "device": self._device} for row in rows]
        self._rows += new
        append_rows(self.folder, new)

    def of(self, part: str) -> list[Row]:
        return [row for row in self._rows if row["part"] == part]

    def have(self, part: str, **values: Any) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in values.items()) for row in self.of(part))

    def failures(self) -> list[Row]:
        """Results that are wrong, and implementations that broke where they said that they could run."""
        return [row for part in PARTS for row in self.of(part) if row.get("wrong")]

"""The rows of a report: ``rows.jsonl``, read when a report is resumed, added to as results come.

Beside it, while a worker runs, ``attempt.json``: what it is calling, so that one can be named who ends the process.
"""

from __future__ import annotations

import json
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
        self._attempt = folder / "attempt.json"
        self._rows = known_rows(folder, device)

    def read(self) -> None:
        """Take up what another process added."""
        self._rows = known_rows(self.folder, self._device)

    def add(self, part: str, rows: Iterable[Mapping[str, Any]]) -> None:
        new = [{"part": part, **row, "device": self._device} for row in rows]
        self._rows += new
        append_rows(self.folder, new)

    def of(self, part: str) -> list[Row]:
        return [row for row in self._rows if row["part"] == part]

    def where(self, part: str, **values: Any) -> list[Row]:
        """Those with these values."""
        return [row for row in self.of(part) if all(row.get(name) == value for name, value in values.items())]

    def failures(self) -> list[Row]:
        """Results that are wrong, and implementations that broke where they said that they could run."""
        return [row for part in PARTS for row in self.of(part) if row.get("wrong")]

    def lost(self) -> list[Row]:
        """The faults that ended a process, or its use of the GPU."""
        return [row for part in PARTS for row in self.of(part) if row.get("lost")]

    def trying(self, part: str, **about: Any) -> None:
        """Note what is called next: a row's ``op``, ``shape``, ``dtype``, ``provider``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._attempt.write_text(json.dumps({"part": part, **about}), encoding="utf-8")

    def attempt(self) -> Row:
        """What was noted last; empty where nothing was, or half of it."""
        try:
            found: Row = json.loads(self._attempt.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return found

    def forget_attempt(self) -> None:
        self._attempt.unlink(missing_ok=True)

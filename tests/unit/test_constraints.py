"""constraints.txt: pins of what is installed here must leave the older supported versions of Python a way out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_pin_holds_only_where_its_release_supports_python(python: str) -> None:
    wrong = []
    for pin in PINS:
        if pin.marker and not pin.marker.evaluate({"python_version": python}):
            continue
        try:
            found = metadata(pin.name)
        except PackageNotFoundError:
            continue
        supported = SpecifierSet(found.get("Requires-Python") or "")
        if found["Version"] in pin.specifier and f"{python}.99" not in supported:
            wrong.append(f"{pin}: {found['Version']} needs Python {supported}")
    assert wrong == []

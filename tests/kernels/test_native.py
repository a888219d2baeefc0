"""What the compiled module says of itself."""

from __future__ import annotations

import pytest

from glimt_kernels import native


def test_one_instruction_set_is_chosen_and_it_is_the_one_in_use() -> None:
    rows = native.instruction_sets()
    assert [row["isa"] for row in rows] == ["v4", "v3", "baseline"]
    assert [row["isa"] for row in rows if row["chosen"]] == [native.lib.isa()]
    assert {row["isa"] for row in rows if not row["reasons"]} == set(native.lib.isas())


def test_instruction_sets_that_cannot_run_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.lib, "isas", lambda: ["baseline", "v3"])
    (reason,) = native.instruction_sets()[0]["reasons"]
    assert "AVX-512" in reason and "x86-64-v4" in reason
    monkeypatch.setattr(native, "ABSENT", "there is none")
    assert all(row["reasons"] == ["there is none"] and not row["chosen"] for row in native.instruction_sets())

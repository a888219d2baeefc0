"""What the compiled module says of itself."""

from __future__ import annotations

import subprocess
import sys

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


def test_without_the_compiled_module_the_references_run() -> None:
    code = """
import sys
sys.modules["glimt_kernels._native"] = None
import torch, glimt_kernels
x, m = torch.randn(1, 3, 8), torch.zeros(1, 1, 8)
torch.testing.assert_close(glimt_kernels.ada_norm(x, m, m, 1e-6), torch.nn.functional.layer_norm(x, (8,), eps=1e-6))
print([row["reasons"] for row in glimt_kernels.inventory() if (row["op"], row["impl"]) == ("ada_norm", "native")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the compiled module could not be loaded" in done.stdout and "reinstall glimt" in done.stdout

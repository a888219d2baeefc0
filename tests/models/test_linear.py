"""Whose matrix products and convolutions run, and why the other library's do not."""

from __future__ import annotations

import pytest
import torch

from glimt.models import linear
from glimt_kernels import Case, references_only

CPU = Case("cpu", torch.float32)


def rows(case: Case) -> dict[tuple[str, str], tuple[bool, list[str]]]:
    return {(row["op"], row["impl"]): (row["chosen"], row["reasons"]) for row in linear.inventory(case)}


@pytest.mark.parametrize(
    ("case", "reasons"),
    [
        (CPU, []),
        (Case("cuda", torch.float32), ["it is called on the CPU, the tensors are on cuda"]),
        (Case("cpu", torch.bfloat16), ["it is called for float32, the tensors are bfloat16"]),
    ],
)
def test_the_inventory_says_of_both_libraries_whether_they_run_and_why_not(case: Case, reasons: list[str]) -> None:
    found = rows(case)
    assert {op for op, _ in found} == {"linear", "convolution"}
    for op in linear.OPS:
        assert found[op, "onednn"] == (not reasons, reasons)
        assert found[op, "aten"] == (bool(reasons), [])
    assert linear.library(case)[0] == ("aten" if reasons else "onednn")


def test_exact_runs_and_a_pytorch_without_onednn_are_reasons_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "has_onednn", lambda: False)
    with references_only():
        chosen, reasons = rows(CPU)["linear", "onednn"]
    assert not chosen
    assert len(reasons) == 2
    assert "exact runs" in reasons[0] and "no oneDNN" in reasons[1]

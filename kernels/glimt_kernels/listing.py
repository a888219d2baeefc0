"""Every implementation of every op, which of them would run, and why the others would not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from glimt_kernels import tuned
from glimt_kernels.dispatch import (
    CPU_FLOAT32,
    Case,
    UnsupportedError,
    candidates,
    choose,
    op_names,
    unsupported_reasons,
    wants_references,
)


def inventory(
    case: Case = CPU_FLOAT32,
    forms: Mapping[str, Mapping[str, Callable[[Case], Case]]] | None = None,
    device: torch.device | None = None,
) -> list[dict[str, Any]]:
    """Every implementation of every op and form of it: ``op``, ``form``, ``impl``, ``chosen`` for ``case``, ``reasons``
    (why it does not run; of one that is asked for and cannot, that first).

    Args:
        forms: of an op, by name, what a form of its calls makes of a case (:mod:`glimt_kernels.forms`).
        device: whose tuned choices go first, where they are all the same for an op.
    """
    rows = []
    for op in op_names():
        best = case.tuned or ("" if device is None else tuned.agreed(op, device, case.dtype))
        for form, of_form in (forms or {}).get(op, {"": lambda plain: plain}).items():
            rows += [{"op": op, "form": form, **row} for row in _rows(op, of_form(case)._replace(tuned=best))]
    return rows


def _rows(op: str, case: Case) -> list[dict[str, Any]]:
    try:
        found = choose(op, case)
    except UnsupportedError as error:
        return _refused(op, case, str(error))
    others = found.others()
    return [
        {"impl": one.impl, "chosen": one is found.candidate, "reasons": list(others.get(one.impl, ()))}
        for one in found.among
    ]


def _refused(op: str, case: Case, why: str) -> list[dict[str, Any]]:
    """Where what is asked for cannot run, nothing does."""
    asked = "reference" if wants_references() else os.environ.get(f"GLIMT_IMPL_{op.upper()}", "")
    others = [one for one in candidates(op) if one.impl != asked]
    return [
        {"impl": asked, "chosen": False, "reasons": [why]},
        *(
            {"impl": one.impl, "chosen": False, "reasons": [*unsupported_reasons(one, case), f"{asked} was asked for"]}
            for one in others
        ),
    ]

"""Which implementation runs each op on each chip, and how many of its builds are compiled: the table of the README.

    GLIMT_TRITON=1 python -m glimt_kernels.status

Made from the candidates themselves and the committed table of resources, for float32 on a CPU and bfloat16 on a GPU.
It is the same on every machine: what only this one lacks (Triton, a compiled extension, an instruction set) is no
reason, and third parties' libraries, which may go first where they are installed, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import torch

import glimt_kernels  # noqa: F401  (importing it defines the operations)
from glimt_kernels import native, triton_env
from glimt_kernels.dispatch import Candidate, Case, candidates, op_names, unsupported_reasons
from glimt_kernels.forms import FORMS, Form
from glimt_kernels.linear import onednn
from glimt_kernels.linear_quant import int_mm
from glimt_kernels.resources import TABLES, Row, read_table
from glimt_kernels.triton_env import ARCHS

THIRD_PARTIES = ("flash_attn", "cudnn", "flashinfer", "sage")
_KINDS = ("int8", "fp8")  # forms that builds of their own are for
_NAMES = {"triton": "Triton", "cuda": "CUDA"}


def runs(op: str, case: Case) -> Candidate:
    """The first of our candidates and PyTorch's that would run ``case`` where everything is there."""
    lacking = {triton_env.ABSENT, native.ABSENT, onednn.ABSENT, int_mm.SATURATES}
    lacking |= {f"on sm_{arch} {library} goes first" for arch in ARCHS for library in THIRD_PARTIES}
    for candidate in candidates(op):
        reasons = [*unsupported_reasons(candidate, case), *candidate.reluctance(case)]
        if candidate.impl not in THIRD_PARTIES and not set(reasons) - lacking:
            return candidate
    raise LookupError(f"{op}: nothing runs {case}")


def _cells(op: str, form: str, of_form: Form, rows: list[Row]) -> tuple[str, ...]:
    """What stands in the columns: a CPU, and each chip."""
    cells = [runs(op, of_form(Case("cpu", torch.float32))).impl]
    for arch in ARCHS:
        impl = runs(op, of_form(Case("cuda", torch.bfloat16, arch=arch))).impl
        cells.append(_on_chip(impl, [row for row in rows if row.arch == arch], form))
    return tuple(cells)


def _on_chip(impl: str, rows: list[Row], form: str) -> str:
    if impl != "triton":
        return _NAMES.get(impl, impl)
    mine = [row for row in rows if form in row.case.split()] if form in _KINDS else rows
    broken = sum(bool(row.stack_bytes or row.local_bytes or row.missing) for row in mine)
    return f"Triton {len(mine)}" + (f", {broken} broken" if broken else "")


def lines() -> Iterator[str]:
    """The table in Markdown; forms of an op that have the same cells share a line."""
    yield f"| op | CPU | {' | '.join(f'sm_{arch}' for arch in ARCHS)} |"
    yield f"|---|---|{'---|' * len(ARCHS)}"
    rows = list(read_table(TABLES["3.7.1"]).values())
    for op in op_names():
        forms: Mapping[str, Form] = FORMS.get(op, {"": lambda case: case})
        together: dict[tuple[str, ...], list[str]] = {}
        for form, of_form in forms.items():  # with the log-sum-exp or without it, a build is one
            cells = _cells(op, form, of_form, [row for row in rows if row.op == op.removesuffix("_lse")])
            together.setdefault(cells, []).append(form)
        for cells, names in together.items():
            shown = "" if len(names) == len(forms) else ", ".join(name or "alone" for name in names)
            yield f"| `{op}`{f' {shown}' if shown else ''} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")

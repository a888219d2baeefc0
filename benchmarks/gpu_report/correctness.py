"""Every implementation of every op against float64, on the device: odd shapes, all dtypes, bfloat16 above all.

The interpreter, which tests kernels without a GPU, cannot compute in bfloat16, and no test there runs what the compiler
makes of a kernel. The measure is the same: at most twice as wrong as plain PyTorch in the working dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report.rows import Row, Rows
from glimt_kernels.bench import SHAPES, Shape, Workload, third_party
from glimt_kernels.bench.compare import judge
from glimt_kernels.bench.lost import ALL, DeviceLostError, brief, is_done, lost_in, raise_if_lost
from glimt_kernels.bench.ops import OPS, build
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.workload import Run, candidates, lossy, unsupported

PART = "correctness"
# A prime number of tokens' factors and widths that divide by no block; both tuned head_dims; one text token.
SHAPES_HERE: Mapping[str, Shape] = {
    "tiny": SHAPES["tiny"],
    "odd": Shape((3, 7, 9), 3, 32, 131, 1, 1, (5, 6, 10)),
    "head-128": Shape((3, 11, 13), 2, 128, 264, 77, 1, (5, 34, 50)),
}


def cases(tiny: bool) -> list[tuple[str, str, str]]:
    """(dtype, op, shape), bfloat16 first: what has never run anywhere."""
    dtypes = ("fp32",) if tiny else ("bf16", "fp16", "fp32")
    shapes = ("tiny",) if tiny else tuple(SHAPES_HERE)
    return [(dtype, op, shape) for dtype in dtypes for shape in shapes for op in OPS]


def missing(rows: Rows, tiny: bool) -> list[tuple[str, str, str]]:
    return [
        (dtype, op, shape)
        for dtype, op, shape in cases(tiny)
        if not is_done(rows.where(PART, dtype=dtype, op=op, shape=shape))
    ]


def sweep(rows: Rows, device: torch.device, tiny: bool, provider_file: Path | None = None) -> Iterator[str]:
    """Add the rows of each case that is missing; a line of progress for each that is wrong.

    Raises:
        DeviceLostError: after the row that says of whom.
    """
    extra = third_party.load(provider_file)
    for dtype, op, shape in missing(rows, tiny):
        about = {"op": op, "shape": shape, "dtype": dtype}
        trying = partial(_note, rows, about)
        without = lost_in(rows.where(PART, **about))
        try:
            found = _case(op, shape, DTYPES[dtype], device, third_party.of(extra, op), without, trying)
        except DeviceLostError as lost:
            rows.add(PART, [{**about, **lost.row, "wrong": True}])
            raise
        rows.add(PART, [{**about, **row} for row in found])
        yield from (f"wrong: {op} {shape} {dtype} {row['provider']}: {row['refused']}" for row in found if row["wrong"])


def _note(rows: Rows, about: Row, provider: str) -> None:
    rows.trying(PART, **about, provider=provider)


def _case(
    op: str,
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    extra: Mapping[str, Run],
    without: Collection[str],
    trying: Callable[[str], None],
) -> list[Row]:
    """The rows of one case; where its inputs or the exact result cannot be had, one that says so."""
    torch.manual_seed(0)
    trying(ALL)
    try:
        return check(build(op, shape, SHAPES_HERE[shape], dtype, device), extra, without, trying)
    except Exception as failed:  # noqa: BLE001 (a case that cannot be built is its row, not the end of the report)
        raise_if_lost(ALL, failed)
        return [{"provider": ALL, "refused": brief(failed), "wrong": True}]


@torch.inference_mode()
def check(
    workload: Workload,
    extra: Mapping[str, Run],
    without: Collection[str] = (),
    trying: Callable[[str], None] = lambda provider: None,
) -> list[Row]:
    """A row for each implementation: its error, ``wrong`` where that is too large, ``absent`` why it cannot run."""
    runs: dict[str, Any] = {**workload.runs, **extra}
    absent = []
    for candidate in candidates(workload):
        reasons = unsupported(workload, candidate)
        if reasons:
            absent.append({"provider": candidate.impl, "absent": "; ".join(reasons), "wrong": False})
            continue
        runs[candidate.impl] = candidate.run
    runs = {name: run for name, run in runs.items() if name not in without}
    judged = judge(workload, runs, lossy(workload), trying)
    return [*({**row, "wrong": "refused" in row} for row in judged.values()), *absent]

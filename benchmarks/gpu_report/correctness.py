"""Every implementation of every op against float64, on the device: odd shapes, all dtypes, bfloat16 above all.

The interpreter, which tests kernels without a GPU, cannot compute in bfloat16, and no test there runs what the compiler
makes of a kernel. The measure is the same: at most twice as wrong as plain PyTorch in the working dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.gpu_report.rows import Row, Rows
from glimt_kernels.bench import SHAPES, Shape, Workload
from glimt_kernels.bench.compare import judge
from glimt_kernels.bench.ops import OPS, build
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.workload import candidates, lossy, unsupported

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
        (dtype, op, shape) for dtype, op, shape in cases(tiny) if not rows.have(PART, dtype=dtype, op=op, shape=shape)
    ]


def sweep(rows: Rows, device: torch.device, tiny: bool) -> Iterator[str]:
    """Add the rows of each case that is missing; a line of progress for each that is wrong."""
    for dtype, op, shape in missing(rows, tiny):
        torch.manual_seed(0)
        made = build(op, shape, SHAPES_HERE[shape], DTYPES[dtype], device)
        found = [{"op": op, "shape": shape, "dtype": dtype, **row} for row in check(made)]
        rows.add(PART, found)
        yield from (f"wrong: {op} {shape} {dtype} {row['provider']}: {row['refused']}" for row in found if row["wrong"])


@torch.inference_mode()
def check(workload: Workload) -> list[Row]:
    """A row for each implementation: its error, ``wrong`` where that is too large, ``absent`` why it cannot run."""
    runs: dict[str, Any] = dict(workload.runs)
    absent = []
    for candidate in candidates(workload):
        reasons = unsupported(workload, candidate)
        if reasons:
            absent.append({"provider": candidate.impl, "absent": "; ".join(reasons), "wrong": False})
            continue
        runs[candidate.impl] = candidate.run
    judged = judge(workload, runs, lossy(workload))
    return [*({**row, "wrong": "refused" in row} for row in judged.values()), *absent]

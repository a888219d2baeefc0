"""The process that calls kernels, part after part. What it leaves are rows; who ends it is named by its parent."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import torch

from benchmarks.gpu_report import correctness, forward
from benchmarks.gpu_report.budget import Budget, OutOfTime
from benchmarks.gpu_report.rows import Row, Rows
from glimt_kernels.bench import SHAPES, BenchError, Settings
from glimt_kernels.bench.compare import measure, missing
from glimt_kernels.bench.lost import DeviceLostError
from glimt_kernels.bench.report import markdown
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.timing import Clock, Rates, rates

DONE, REFUSED, LOST = 0, 2, 3
# By when a part must be done, as shares of the budget: time left over goes to the next one.
ENDS = {"correctness": 0.3, "kernels": 0.6, "forward": 0.95}
# What goals are about comes first. torch.compile takes seconds for each workload: it is compared on that shape alone.
FIRST, SECOND = "wan-1.3b-480p", "wan-14b-480p"
# Seconds of timing in one workload after which no further round begins.
LIMIT_S = 2.0


def work(options: argparse.Namespace, rows: Rows, budget: Budget) -> int:
    """Do what is missing, until the time is over or the GPU is lost."""
    device = torch.device(options.device)
    clock = Clock(device)
    dtype = dtype_of(options)
    roof = rates(clock, DTYPES[dtype])
    rows.add("rates", [asdict(roof)])
    cases = forward.TINY if options.tiny else forward.CASES
    parts: Mapping[str, Callable[[], Iterator[str]]] = {
        "correctness": lambda: correctness.sweep(rows, device, options.tiny, options.provider_file),
        "kernels": lambda: _kernels(settings(options), rows, clock, roof),
        "forward": lambda: forward.compare(rows, clock, roof, dtype, cases, options.repeats),
    }
    for part, lines in parts.items():
        try:
            with budget.until(ENDS[part]):
                for line in lines():
                    print(line, flush=True)
        except OutOfTime:  # noqa: PERF203
            print(f"{part}: its time is over", flush=True)
        except DeviceLostError as lost:
            print(f"{part}: {lost.row['provider']} left the GPU unusable: {lost.row['refused']}", flush=True)
            return LOST
        except BenchError as error:
            print(f"{part}: {error}", flush=True)
            return REFUSED
    return DONE


def dtype_of(options: argparse.Namespace) -> str:
    return "bf16" if torch.device(options.device).type == "cuda" else "fp32"


def settings(options: argparse.Namespace) -> list[Settings]:
    """What is timed, in the order of its weight."""
    common = Settings(
        dtype=dtype_of(options),
        device=options.device,
        repeats=options.repeats,
        limit_s=LIMIT_S,
        provider_file=options.provider_file,
        compile=False,
    )
    if options.tiny:
        return [replace(common, shapes=["tiny"])]
    rest = [name for name in SHAPES if name not in ("tiny", FIRST, SECOND)]
    return [
        replace(common, shapes=[FIRST, SECOND]),
        replace(common, shapes=[FIRST], providers=["compile"]),
        *(replace(common, shapes=[shape]) for shape in sorted(rest, key=lambda shape: not shape.startswith("wan"))),
    ]


def cut(options: argparse.Namespace, rows: Rows) -> dict[str, list[str]]:
    """By part, what there are no rows of yet."""
    cases = forward.TINY if options.tiny else forward.CASES
    return {
        "correctness": [" ".join(case) for case in correctness.missing(rows, options.tiny)],
        "kernels": [
            " ".join((op, shape, *one.providers))
            for one in settings(options)
            for op, shape in missing(one, rows.of("kernels"))
        ],
        "forward": [" ".join(case) for case in forward.missing(rows, cases)],
    }


def _kernels(asked: Sequence[Settings], rows: Rows, clock: Clock, roof: Rates) -> Iterator[str]:
    for one in asked:
        about: Row = {"dtype": one.dtype_name, "on_gpu": clock.device.type == "cuda"}

        def trying(op: str, shape: str, provider: str, about: Row = about) -> None:
            rows.trying("kernels", op=op, shape=shape, provider=provider, **about)

        for new in measure(one, rows.of("kernels"), clock, roof, trying):
            rows.add("kernels", [{**row, "wrong": True} if row.get("lost") else row for row in new])
            yield markdown(new)

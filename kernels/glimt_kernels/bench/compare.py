"""The run: correctness first, on the very inputs that are timed, then interleaved times.

A result more than twice as wrong against float64 as plain PyTorch in the same dtype gets no time unless it is marked
lossy (or says so itself), and then its error stands beside it. A run goes on where an earlier one with the same folder
stopped, or was stopped by a provider that left the GPU unusable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from glimt_kernels.bench import machine, third_party
from glimt_kernels.bench.lost import ALL, DeviceLostError, brief, is_done, lost_in, raise_if_lost
from glimt_kernels.bench.ops import build
from glimt_kernels.bench.report import document, markdown
from glimt_kernels.bench.settings import DTYPES, BenchError, Settings
from glimt_kernels.bench.shapes import SHAPES
from glimt_kernels.bench.timing import Clock, Rates, Timing, rates
from glimt_kernels.bench.workload import Run, Workload, error, flat, lossy, providers

WORSE_THAN_PYTORCH = 2.0
# Of float32 and of stored float64 results alike: below this a difference says nothing.
SLACK = 1e-7
Row = dict[str, Any]
Say = Callable[[str], None]
# Takes the name of what is called next, so that one can be named who ends the process.
Trying = Callable[[str], None]


def _nobody(provider: str) -> None:
    pass


@dataclass(frozen=True)
class Results:
    """Of a run.

    Attributes:
        rows: one a provider, op and shape: times, or ``refused`` with the reason.
        rates: what this device does at most, measured in this run.
        around: device, versions, clocks.
        notes: what else there is to say.
    """

    rows: list[Row]
    rates: Rates
    around: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def run(settings: Settings, say: Say = lambda line: None) -> Results:
    """Compare, and write what ``settings.out`` asks for.

    Args:
        say: takes the table of each workload as it is done.

    Raises:
        BenchError: third parties' providers that cannot be loaded, or a folder that holds another machine's rows.
        DeviceLostError: a provider left the GPU unusable; the rows until then are in ``settings.out``.
    """
    device = settings.torch_device
    rows = known_rows(settings.out, machine.device_name(device))
    around = {**machine.describe(device), "clocks before": machine.clocks(device)}
    clock = Clock(device)
    roof = rates(clock, DTYPES[settings.dtype_name])
    for new in measure(settings, rows, clock, roof):
        rows += new
        append_rows(settings.out, new)
        say(markdown(new))
    results = Results(rows, roof, {**around, "clocks after": machine.clocks(device)})
    if settings.out is not None:
        write(results, settings.out)
    return results


def measure(
    settings: Settings,
    known: Sequence[Row],
    clock: Clock,
    roof: Rates,
    trying: Callable[[str, str, str], None] = lambda op, shape, provider: None,
) -> Iterator[list[Row]]:
    """The rows of each workload that is not ``known`` yet, as it is done; ``trying`` hears what is called next.

    Raises:
        DeviceLostError: after the row that says of whom.
    """
    extra = third_party.load(settings.provider_file)
    device = settings.torch_device
    for op, shape in missing(settings, list(known)):
        about: Row = {"op": op, "shape": shape, "dtype": settings.dtype_name, "device": machine.device_name(device)}
        about["on_gpu"] = device.type == "cuda"
        without = lost_in(_of_workload(known, op, shape, settings))
        theirs = third_party.of(extra, op)
        try:
            rows = _measure(op, shape, settings, clock, roof, theirs, without, partial(trying, op, shape))
        except DeviceLostError as lost:
            yield [{**about, **lost.row}]
            raise
        yield [{**about, **row} for row in rows]


def missing(settings: Settings, known: Sequence[Row]) -> list[tuple[str, str]]:
    """(op, shape) of every workload that is asked for and not ``known``."""
    asked = [(op, shape) for shape in settings.shape_names for op in settings.workloads]
    return [(op, shape) for op, shape in asked if not _is_known(known, op, shape, settings)]


def write(results: Results, folder: Path) -> None:
    """``report.md`` and the plots. Without matplotlib the report says that they are missing."""
    from glimt_kernels.bench.plots import draw

    results.notes.extend(draw(results.rows, results.rates, folder))
    (folder / "report.md").write_text(document(results), encoding="utf-8")


def _measure(
    op: str,
    shape: str,
    settings: Settings,
    clock: Clock,
    roof: Rates,
    extra: Mapping[str, Run],
    without: Collection[str],
    trying: Trying,
) -> list[Row]:
    """The rows of one workload; where it cannot be built, memory is too small above all, one that says so."""
    torch.manual_seed(0)
    trying(ALL)
    try:
        made = build(op, shape, SHAPES[shape], DTYPES[settings.dtype_name], settings.torch_device)
        return compare(made, clock, roof, settings, extra, without, trying)
    except Exception as failed:  # noqa: BLE001 (a workload that cannot be built is its row, not the end of the run)
        raise_if_lost(ALL, failed)
        return [{"provider": ALL, "refused": brief(failed)}]
    finally:
        if settings.torch_device.type == "cuda":
            _empty_cache()


def _empty_cache() -> None:
    with suppress(RuntimeError):  # of a device that is lost, of which somebody else tells
        torch.cuda.empty_cache()


@torch.inference_mode()
def compare(
    workload: Workload,
    clock: Clock,
    roof: Rates,
    settings: Settings,
    extra: Mapping[str, Run],
    without: Collection[str] = (),
    trying: Trying = _nobody,
) -> list[Row]:
    """One row a provider: error against float64, then times of those that are right; and one of each that cannot."""
    runs, reasons = providers(workload, settings.providers, extra)
    if not settings.providers and not settings.compile:
        del runs["compile"]
    if "compile" in runs:
        torch.compiler.reset()  # else the ninth shape of one function would silently run uncompiled
    runs = {name: run for name, run in runs.items() if name not in without}
    rows = judge(workload, runs, {*settings.lossy, *lossy(workload)}, trying)
    trying(ALL)
    right = [name for name, row in rows.items() if "refused" not in row]
    calls = {name: (lambda run=runs[name]: run(*workload.args)) for name in right}
    for name, timing in clock.compare(calls, settings.repeats, settings.limit_s).items():
        rows[name].update(_figures(workload, timing, roof))
    absent = [{"provider": name, "refused": reason} for name, reason in reasons.items()]
    return [*rows.values(), *absent]


def judge(
    workload: Workload, runs: Mapping[str, Run], may_be_wrong: Collection[str] = (), trying: Trying = _nobody
) -> dict[str, Row]:
    """By provider: its error, and ``refused`` where it fails or is too wrong.

    Raises:
        DeviceLostError: a provider left the GPU unusable.
    """
    exact = list(workload.exact())
    honest = error(workload.part(flat((workload.honest or workload.eager)(*workload.args))), exact).relative_l2
    rows: dict[str, Row] = {}
    for name, run in runs.items():
        row = rows[name] = {"provider": name, "honest_l2": honest}
        trying(name)
        try:
            found = error(workload.part(flat(run(*workload.args))), exact)
        except Exception as failed:  # noqa: BLE001 (whatever a third party raises is its row, not the end of the run)
            raise_if_lost(name, failed)
            row["refused"] = brief(failed)
            continue
        row.update(asdict(found))
        within = found.relative_l2 <= WORSE_THAN_PYTORCH * honest + SLACK  # a NaN is not
        if not within and (name not in may_be_wrong or not isfinite(found.relative_l2)):
            row["refused"] = f"relative L2 error {found.relative_l2:.2e}, plain PyTorch's is {honest:.2e}"
    return rows


def _figures(workload: Workload, timing: Timing, roof: Rates) -> Row:
    seconds = timing.median_ms / 1000
    tflops, gbps = workload.flops / seconds / 1e12, workload.num_bytes / seconds / 1e9
    of_gemm, of_copy = tflops / roof.gemm_tflops, gbps / roof.copy_gbps
    return {
        "median_ms": timing.median_ms,
        "p20_ms": timing.percentile_ms(20),
        "p80_ms": timing.percentile_ms(80),
        "calls": len(timing.values_ms),
        "peak_bytes": timing.peak_bytes,
        "tflops": tflops,
        "gbps": gbps,
        "of_gemm": of_gemm,
        "of_copy": of_copy,
        "share": of_copy if workload.kind == "element-wise" else of_gemm,
        "kind": workload.kind,
        "intensity": workload.flops / workload.num_bytes,
    }


def _is_known(rows: Sequence[Row], op: str, shape: str, settings: Settings) -> bool:
    return is_done(_of_workload(rows, op, shape, settings), settings.providers)


def _of_workload(rows: Sequence[Row], op: str, shape: str, settings: Settings) -> list[Row]:
    wanted = (op, shape, settings.dtype_name)
    return [row for row in rows if (row["op"], row["shape"], row["dtype"]) == wanted]


def known_rows(folder: Path | None, device: str) -> list[Row]:
    """What an earlier run on this device left in ``rows.jsonl``. A line cut short by the end of a run is dropped.

    Raises:
        BenchError: rows of another device.
    """
    path = folder / "rows.jsonl" if folder is not None else None
    if path is None or not path.exists():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # noqa: PERF203
            continue
    others = sorted({str(row.get("device")) for row in rows} - {device})
    if others:
        raise BenchError(f"out: {folder} holds rows of {', '.join(others)}; this is {device}: take another folder")
    return rows


def append_rows(folder: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add ``rows`` to ``rows.jsonl`` at once, so that nothing is lost when the run is stopped; on a new line, whatever
    the end of an earlier run cut short."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

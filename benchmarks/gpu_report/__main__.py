"""What can only be known on a GPU: whether every kernel is right there, and how fast it and the model are.

    make gpu-report                                                    # or, from a source tree with nothing installed:
    PYTHONPATH=python:kernels python -m benchmarks.gpu_report

Correctness of every implementation first, then ``glimt bench kernels`` at real shapes, then one forward of Wan 1.3B and
14B beside Diffusers. Writes benchmarks/reports/<date>-<gpu>/ within the budget; what was cut is listed, and the same
command goes on from there. Exit code 1: something is wrong; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.gpu_report import correctness, document, forward
from benchmarks.gpu_report.budget import Budget, OutOfTime
from benchmarks.gpu_report.rows import Rows
from benchmarks.harness import ROOT
from glimt_kernels.bench import SHAPES, BenchError, Settings, machine
from glimt_kernels.bench.compare import Results, measure, missing
from glimt_kernels.bench.plots import draw
from glimt_kernels.bench.report import markdown
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.timing import Clock, Rates, rates

OK, WRONG, NO_GPU = 0, 1, 2
# By when a part must be done, as shares of the budget: time left over goes to the next one.
ENDS = {"correctness": 0.3, "kernels": 0.65, "forward": 0.95}
# What goals are about comes first. torch.compile takes seconds for each workload: it is compared on that shape alone.
FIRST, SECOND = "wan-1.3b-480p", "wan-14b-480p"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(f"gpu-report: {problem}", file=sys.stderr)
        return NO_GPU
    device = torch.device(options.device)
    name = machine.device_name(device)
    folder = options.out or ROOT / "benchmarks/reports" / f"{date.today().isoformat()}-{environment.slug(name)}"
    budget = Budget(options.budget_s)
    try:
        rows = Rows(folder, name)
    except BenchError as error:
        print(f"gpu-report: {error}", file=sys.stderr)
        return NO_GPU
    return _report(rows, device, budget, options)


def _report(rows: Rows, device: torch.device, budget: Budget, options: argparse.Namespace) -> int:
    around = {**machine.describe(device), "commit": environment.commit(), "clocks before": machine.clocks(device)}
    clock = Clock(device)
    dtype = "bf16" if device.type == "cuda" else "fp32"
    roof = rates(clock, DTYPES[dtype])
    asked = _settings(options, dtype)
    cases = forward.TINY if options.tiny else forward.CASES
    parts = {
        "correctness": correctness.sweep(rows, device, options.tiny),
        "kernels": _kernels(asked, rows, clock, roof),
        "forward": forward.compare(rows, clock, roof, dtype, cases, options.repeats),
    }
    for part, lines in parts.items():
        try:
            with budget.until(ENDS[part]):
                for line in lines:
                    print(line, flush=True)
        except OutOfTime:  # noqa: PERF203
            print(f"{part}: its time is over", flush=True)
    cut = {
        "correctness": [" ".join(case) for case in correctness.missing(rows, options.tiny)],
        "kernels": [f"{op} {shape}" for one in asked for op, shape in missing(one, rows.of("kernels"))],
        "forward": forward.missing(rows, cases),
    }
    results = Results(rows.of("kernels"), roof, {**around, "clocks after": machine.clocks(device)})
    rows.folder.mkdir(parents=True, exist_ok=True)
    results.notes.extend(draw(results.rows, roof, rows.folder))
    (rows.folder / "report.md").write_text(document.text(rows, results, cut, budget.used_s()), encoding="utf-8")
    print(f"written to {rows.folder}")
    return WRONG if rows.failures() else OK


def _settings(options: argparse.Namespace, dtype: str) -> list[Settings]:
    """What is timed, in the order of its weight."""
    if options.tiny:
        given = ["eager", "native", "sdpa", "int_mm", "reference"]
        return [Settings(shapes=["tiny"], providers=given, dtype=dtype, device=options.device, repeats=options.repeats)]
    common = Settings(dtype=dtype, device=options.device, repeats=options.repeats, compile=False)
    rest = [name for name in SHAPES if name not in ("tiny", FIRST, SECOND)]
    return [
        replace(common, shapes=[FIRST, SECOND]),
        replace(common, shapes=[FIRST], providers=["eager", "compile"]),
        *(replace(common, shapes=[shape]) for shape in sorted(rest, key=lambda shape: not shape.startswith("wan"))),
    ]


def _kernels(asked: Sequence[Settings], rows: Rows, clock: Clock, roof: Rates) -> Iterator[str]:
    for settings in asked:
        for new in measure(settings, rows.of("kernels"), clock, roof):
            rows.add("kernels", new)
            yield markdown(new)


def _problem(options: argparse.Namespace) -> str:
    """Why there can be no report; "" if there can."""
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        return (
            f"it needs a CUDA device, and PyTorch {torch.__version__} finds none here; to try the tool out on a CPU: "
            "--device cpu --tiny"
        )
    if torch.device(options.device).type == "cpu" and not options.tiny:
        return "on a CPU there is only a trial of the tool: --device cpu --tiny"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--device", default="cuda", help="%(default)s, or cuda:N; cpu only with --tiny")
    add("--tiny", action="store_true", help="tiny shapes in float32: a trial of the tool itself")
    add("--budget-s", type=float, default=470.0, help="seconds for all of it (%(default)s); what does not fit is cut")
    add("--repeats", type=int, default=20, help="timed calls of each provider (%(default)s)")
    add("--out", type=Path, help="folder instead of benchmarks/reports/<date>-<gpu>")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

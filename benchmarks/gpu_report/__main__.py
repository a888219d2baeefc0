"""What can only be known on a GPU: whether every kernel is right there, and how fast it and the model are.

    make gpu-report                                                    # or, from a source tree with nothing installed:
    PYTHONPATH=python:kernels python -m benchmarks.gpu_report

Correctness of every implementation first, then ``glimt bench kernels`` at real shapes, then one forward of Wan 1.3B and
14B beside Diffusers. Writes benchmarks/reports/<date>-<gpu>/ within the budget; what was cut is listed, and the same
command goes on from there. The kernels run in a process of their own: one that breaks it, or the GPU's state in it, is
a row, and another process goes on. Exit code 1: something is wrong; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.gpu_report import document
from benchmarks.gpu_report.budget import Budget
from benchmarks.gpu_report.rows import Rows
from benchmarks.gpu_report.supervisor import supervise
from benchmarks.gpu_report.worker import ENDS, cut, work
from benchmarks.harness import ROOT
from glimt_kernels.bench import BenchError, machine
from glimt_kernels.bench.compare import Results
from glimt_kernels.bench.plots import draw
from glimt_kernels.bench.timing import Rates

OK, WRONG, NO_GPU = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(f"gpu-report: {problem}", file=sys.stderr)
        return NO_GPU
    device = torch.device(options.device)
    name = machine.device_name(device)
    folder = options.out or ROOT / "benchmarks/reports" / f"{date.today().isoformat()}-{environment.slug(name)}"
    budget = Budget(options.budget_s, options.used_s or 0.0)
    try:
        rows = Rows(folder, name)
    except BenchError as error:
        print(f"gpu-report: {error}", file=sys.stderr)
        return NO_GPU
    if options.used_s is not None:
        return work(options, rows, budget)
    return _report(rows, device, budget, options)


def _report(rows: Rows, device: torch.device, budget: Budget, options: argparse.Namespace) -> int:
    around = {**machine.describe(device), "commit": environment.commit(), "clocks before": machine.clocks(device)}
    problems = supervise(_command(options, rows.folder), rows, budget, ENDS)
    around["clocks after"] = machine.clocks(device)
    results = None
    if rows.of("rates"):
        roof = rows.of("rates")[-1]
        results = Results(rows.of("kernels"), Rates(roof["gemm_tflops"], roof["copy_gbps"]), around)
        results.notes.extend(draw(results.rows, results.rates, rows.folder))
    rows.folder.mkdir(parents=True, exist_ok=True)
    text = document.text(rows, results, document.Around(around, problems, cut(options, rows), budget.used_s()))
    (rows.folder / "report.md").write_text(text, encoding="utf-8")
    print(f"written to {rows.folder}")
    return WRONG if rows.failures() or problems else OK


def _command(options: argparse.Namespace, folder: Path) -> list[str]:
    """Of a worker, but for the seconds that are used."""
    given = {name: getattr(options, name) for name in ("device", "budget_s", "repeats")}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    if options.tiny:
        words.append("--tiny")
    if options.provider_file is not None:
        words += ["--provider-file", str(options.provider_file.resolve())]
    return [sys.executable, "-m", "benchmarks.gpu_report", *words, "--out", str(folder.resolve()), "--used-s"]


def _problem(options: argparse.Namespace) -> str:
    """Why there can be no report; "" if there can."""
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        return (
            f"it needs a CUDA device, and PyTorch {torch.__version__} finds none here; to try the tool out on a CPU: "
            "--device cpu --tiny"
        )
    if torch.device(options.device).type == "cpu" and not options.tiny:
        return "on a CPU there is only a trial of the tool: --device cpu --tiny"
    if options.provider_file is not None and not options.provider_file.is_file():
        return f"provider_file: no file {options.provider_file}"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--device", default="cuda", help="%(default)s, or cuda:N; cpu only with --tiny")
    add("--tiny", action="store_true", help="tiny shapes in float32: a trial of the tool itself")
    add("--budget-s", type=float, default=470.0, help="seconds for all of it (%(default)s); what does not fit is cut")
    add("--repeats", type=int, default=20, help="timed calls of each provider, at most (%(default)s)")
    add("--provider-file", type=Path, help="Python file with PROVIDERS: kernels that take part in all of it")
    add("--out", type=Path, help="folder instead of benchmarks/reports/<date>-<gpu>")
    add("--used-s", type=float, help=argparse.SUPPRESS)  # of a worker: the seconds of the budget that are used
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

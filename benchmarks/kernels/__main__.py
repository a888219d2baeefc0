"""Kernels beside eager PyTorch, torch.compile and other libraries, on the shapes that models run.

    python -m benchmarks.kernels                                     # or: glimt bench kernels
    python -m benchmarks.kernels --op ada_norm --shapes wan-1.3b-480p,ltx-2b --providers eager,compile,triton
    python -m benchmarks.kernels --out DIR --provider-file mine.py   # PROVIDERS = {"ada_norm": {"mine": function}}

Correctness first, on the very inputs that are timed: a result more than twice as wrong against float64 as eager PyTorch
in the same dtype gets no time unless it is marked lossy (``--lossy``), and then its error stands beside it. A run goes
on where an earlier one with the same ``--out`` stopped. On a machine without a GPU it compares what runs on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.kernels.ops import OPS
from benchmarks.kernels.report import markdown
from benchmarks.kernels.timing import Clock, Rates, rates
from benchmarks.kernels.workload import Run, Workload, error, flat, providers
from benchmarks.shapes import SHAPES

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WORSE_THAN_EAGER = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    extra = runpy.run_path(str(options.provider_file))["PROVIDERS"] if options.provider_file else {}
    clock = Clock(device)
    torch.manual_seed(0)
    around = {**environment.describe(), "device": _device_name(device), "others": environment.others_now()}
    machine = rates(clock, dtype)
    rows = _known(options.out)
    for op in options.op or OPS:
        for shape in options.shapes or _default_shapes(device):
            if any(row["op"] == op and row["shape"] == shape and row["dtype"] == str(dtype) for row in rows):
                continue
            made = importlib.import_module(f"benchmarks.kernels.ops.{op}").workload(shape, SHAPES[shape], dtype, device)
            new = compare(made, clock, machine, options, extra.get(op, {}))
            rows += [{**row, "dtype": str(dtype)} for row in new]
            _append(options.out, rows[-len(new) :])
            print(markdown(rows[-len(new) :]), flush=True)
    if options.out is not None:
        from benchmarks.kernels.plots import draw

        (options.out / "kernels.md").write_text(_document(rows, around, machine))
        draw(rows, machine, options.out)
        print(f"written to {options.out}", file=sys.stderr)
    return 0


@torch.inference_mode()
def compare(
    workload: Workload, clock: Clock, machine: Rates, options: argparse.Namespace, extra: Mapping[str, Run]
) -> list[dict[str, Any]]:
    """One row a provider: error against float64, then times of those that are right; and one of each that cannot."""
    runs, reasons = providers(workload, options.providers, extra)
    exact = list(workload.exact())
    honest = error(workload.part(flat(workload.eager(*workload.args))), exact)
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        row = rows[name] = {"op": workload.op, "shape": workload.shape, "provider": name}
        try:
            found = error(workload.part(flat(run(*workload.args))), exact)
        except Exception as failed:  # noqa: BLE001 (whatever a third party raises is its row, not the end of the run)
            row["refused"] = f"{type(failed).__name__}: {failed}".splitlines()[0][:200]
            continue
        row.update(asdict(found))
        if found.relative_l2 > WORSE_THAN_EAGER * honest.relative_l2 + 1e-7 and name not in options.lossy:
            row["refused"] = f"relative L2 error {found.relative_l2:.2e}, eager's is {honest.relative_l2:.2e}"
            continue
        calls[name] = lambda run=run: run(*workload.args)
    for name, timing in clock.compare(calls, options.repeats).items():
        seconds = timing.median_ms / 1000
        rows[name].update(
            median_ms=timing.median_ms,
            p20_ms=timing.percentile_ms(20),
            p80_ms=timing.percentile_ms(80),
            peak_bytes=timing.peak_bytes,
            tflops=workload.flops / seconds / 1e12,
            gbps=workload.num_bytes / seconds / 1e9,
            kind=workload.kind,
            intensity=workload.flops / workload.num_bytes,
        )
        share = rows[name]["tflops"] / machine.gemm_tflops
        if workload.kind == "element-wise":
            share = rows[name]["gbps"] / machine.copy_gbps
        rows[name]["share"] = share
    about = {"op": workload.op, "shape": workload.shape}
    absent = [{**about, "provider": name, "refused": reason} for name, reason in reasons.items()]
    return [*rows.values(), *absent]


def _document(rows: list[dict[str, Any]], around: Mapping[str, Any], machine: Rates) -> str:
    from benchmarks.table import listing

    return f"""# Kernels

Measured in the same run: matrix products {machine.gemm_tflops:.1f} TFLOP/s, copies {machine.copy_gbps:.0f} GB/s.
*share* is the part of the first that a matrix op reaches, of the second that an element-wise one reaches. Times are
medians of single calls (20th to 80th percentile), caches emptied before each on a GPU, providers interleaved. Errors
are relative L2 against float64.

{markdown(rows)}

![Roofline](roofline.png)
![Against eager](eager.png)
![Error and speed](error.png)

{listing(around)}
"""


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else environment.cpu_name()


def _default_shapes(device: torch.device) -> list[str]:
    return [name for name in SHAPES if name != "tiny"] if device.type == "cuda" else ["tiny"]


def _known(folder: Path | None) -> list[dict[str, Any]]:
    path = folder / "kernels.jsonl" if folder is not None else None
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.exists() else []


def _append(folder: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kernels.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--op", action="append", choices=OPS, help="only this op (may be repeated)")
    add("--shapes", type=_names(SHAPES), default=[], help=f"comma-separated, of {', '.join(SHAPES)}")
    add("--providers", type=_list, default=[], help="comma-separated: eager, compile, triton, ... (all that run here)")
    add("--lossy", type=_list, default=[], help="providers that are timed though they are less exact")
    add("--provider-file", type=Path, help="Python file with PROVIDERS = {op: {name: function of the op's arguments}}")
    add("--dtype", choices=DTYPES, help="bf16 on a GPU, fp32 on a CPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=20, help="timed calls of each provider (%(default)s)")
    add("--out", type=Path, help="folder for kernels.jsonl, kernels.md and the plots")
    return parser


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _names(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = _list(text)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no shape {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    raise SystemExit(main())

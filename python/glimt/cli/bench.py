"""``glimt bench kernels``: the benchmark of ``glimt_kernels``, which needs no engine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from glimt.cli.outcome import Outcome
from glimt.errors import RequestError


def run(namespace: argparse.Namespace) -> Outcome:
    """Tables go to standard error as they are made, for a run may take long; the report is the result."""
    from glimt_kernels import bench
    from glimt_kernels.bench.report import document

    try:
        settings = bench.Settings(
            ops=namespace.op,
            shapes=namespace.shapes,
            providers=namespace.providers,
            lossy=namespace.lossy,
            dtype=namespace.dtype,
            device=namespace.device,
            repeats=namespace.repeats,
            out=namespace.out,
            provider_file=namespace.provider_file,
        )
        results = bench.run(settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    except bench.BenchError as error:
        raise RequestError(*error.problems) from error
    written = "" if namespace.out is None else f"\nwritten to {namespace.out}"
    around = {"machine": dict(results.around), "rates": asdict(results.rates), "notes": results.notes}
    return Outcome(document(results).strip() + written, {**around, "rows": results.rows})

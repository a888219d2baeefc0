"""The benchmark where there is no engine: ``python -m glimt_kernels.bench``. With one it is ``glimt bench kernels``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glimt_kernels.bench import BenchError, Settings, run
from glimt_kernels.bench.report import document

OK, REFUSED = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Tables go to standard error as they are made; the report is what is printed."""
    options = parser().parse_args(arguments)
    try:
        settings = Settings(
            ops=options.op,
            shapes=options.shapes,
            providers=options.providers,
            lossy=options.lossy,
            dtype=options.dtype,
            device=options.device,
            repeats=options.repeats,
            out=options.out,
            provider_file=options.provider_file,
        )
        results = run(settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    except BenchError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return REFUSED
    print(document(results).strip())
    return OK


def parser() -> argparse.ArgumentParser:
    """The options of ``glimt bench kernels``."""
    made = argparse.ArgumentParser(prog="python -m glimt_kernels.bench", description=(__doc__ or "").partition("\n")[0])
    gather: dict[str, Any] = {"type": _names, "action": "extend", "default": [], "metavar": "A,B"}
    made.add_argument("--op", **gather, help="only these ops, or workloads as attention/cross")
    made.add_argument("--shapes", **gather, help="wan-1.3b-480p, ...; default: all on a GPU, tiny on a CPU")
    made.add_argument("--providers", **gather, help="eager,compile,sdpa,cudnn,triton,...; default: all here")
    made.add_argument("--lossy", **gather, help="providers that are timed though they are less exact")
    made.add_argument("--provider-file", type=Path, metavar="FILE", help="Python file with PROVIDERS, see README.md")
    made.add_argument("--dtype", metavar="NAME", help="fp32, fp16 or bf16; default: bf16 on a GPU, fp32 on a CPU")
    made.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    made.add_argument("--repeats", type=int, default=20, metavar="N", help="timed calls, at most; default 20")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder for rows.jsonl, report.md and plots")
    return made


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has a comma with no name beside it")
    return names


if __name__ == "__main__":
    raise SystemExit(main())

"""glimt beside Diffusers on one checkpoint and one CPU: time of every stage, memory, and whether the frames agree.

    python -m benchmarks.cpu [--rounds 5] [--steps N] [--json FILE] [--report DIR]

Each round starts both providers in a process of their own, which loads and runs its first request (load, text, whole,
peak memory), and then runs one more request in processes that stay (stages). Only one process computes at a time, and
who goes first alternates. Every request of a round has a prompt and a seed of its own. Where frames differ, there are
no numbers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.harness import ROOT, BenchmarkError, cpu_used_s, ratio, series
from benchmarks.requests import requests
from benchmarks.rounds import Measured, run_rounds
from benchmarks.table import Row, listing, markdown

PROVIDERS = {"glimt": "benchmarks.providers:Glimt", "Diffusers": "benchmarks.providers:Diffusers"}
MODEL = ROOT / "python/glimt_world/checkpoint"
MIN_ROUNDS = 5
# Other over ours. Peak memory at most 0.6 of the other's.
GOALS = {"whole": 2.0, "decode": 3.0, "load + text": 3.0, "peak_rss_mib": 1 / 0.6}
COLD = {
    "load": "import and load",
    "load + text": "import, load, first prompt",
    "load + whole": "from nothing to frames",
}
WARM = {"text": "text", "denoise": "denoise", "decode": "decode", "whole": "whole request"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        result = measure(options, say=lambda line: print(line, file=sys.stderr))
    except BenchmarkError as error:
        print(f"no numbers: {error}", file=sys.stderr)
        return 1
    result["command"] = shlex.join(
        ["python", "-m", "benchmarks.cpu", *(sys.argv[1:] if arguments is None else arguments)]
    )
    text = report(result)
    print(text)
    _write(result, text, options)
    return 0


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds. Raises BenchmarkError where a provider fails or frames differ."""
    from glimt.env import cpu_count

    others = environment.others_now()
    load = environment.load_average()
    if warning := environment.busy_warning(others):
        say(f"busy machine: {warning}")
    asked = requests(
        2 * options.rounds + 1,
        height=options.height,
        width=options.width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
    )
    bystanders, used = environment.Bystanders(), cpu_used_s()
    measured, psnr_db = run_rounds(PROVIDERS, str(options.model), options.threads, asked, say)
    during = bystanders.processors(cpu_used_s() - used)
    rows = _rows(measured)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": {
            **environment.describe(),
            "threads": min(options.threads, cpu_count()),
            "load average before": load,
            "processors used by others before": others,
            "processors used by others during": during,
        },
        "busy": environment.busy_warning(during),
        "model": _shown(options.model),
        "request": {**asked[-1].to_dict(), "prompt": f"{len(asked)} different", "seed": f"0 to {len(asked) - 1}"},
        "rounds": options.rounds,
        "psnr_db": psnr_db,
        "about": {name: one.about for name, one in measured.items()},
        "rows": [row.to_dict() for row in rows],
        "table": markdown(rows, *measured),
    }


def _rows(measured: dict[str, Measured]) -> list[Row]:
    ours, other = measured.values()
    rows = []
    for titles, wall, cpu in (
        (COLD, (ours.cold_wall, other.cold_wall), (ours.cold_cpu, other.cold_cpu)),
        (WARM, (ours.warm_wall, other.warm_wall), (ours.warm_cpu, other.warm_cpu)),
    ):
        (a, b), (c, d) = map(series, wall), map(series, cpu)
        rows += [
            Row(title, "s", a[name], b[name], GOALS.get(name, 0.0), ratio(c[name], d[name]))
            for name, title in titles.items()
        ]
    a, b = series(ours.cold_wall), series(other.cold_wall)
    rows.append(Row("peak memory", "MiB", a["peak_rss_mib"], b["peak_rss_mib"], GOALS["peak_rss_mib"]))
    return rows


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    asked, around = result["request"], result["environment"]
    size = f"{asked['num_frames']} frames of {asked['width']}x{asked['height']}, {asked['num_inference_steps']} steps"
    few = f"Only {result['rounds']} rounds; {MIN_ROUNDS} are asked for.\n\n" if result["rounds"] < MIN_ROUNDS else ""
    busy = f"**Busy machine**: {result['busy']}.\n\n" if result["busy"] else ""
    psnr_db = result["psnr_db"]
    return f"""# glimt and Diffusers on a CPU

    {result["command"]}

{size}, guidance {asked["guidance_scale"]}, float32, {around["threads"]} threads, model {result["model"]}.
{result["date"]}, commit {around["commit"]}.

{busy}{few}{result["table"]}

Median of {result["rounds"]} (least - most); ratio of the medians (least - most of a round). The first three rows and
the last are of fresh processes with their first request, the others of processes that have run one before. Encoding to
a file is not included. Frames agree: PSNR {min(psnr_db)} dB at least over {len(psnr_db)} clips (120 stands for equal).

{listing(around)}

{chr(10).join(f"- {name}: {listing_line}" for name, listing_line in _about(result).items())}
"""


def _about(result: dict[str, Any]) -> dict[str, str]:
    return {name: listing(about).replace("\n- ", "; ").removeprefix("- ") for name, about in result["about"].items()}


def _write(result: dict[str, Any], text: str, options: argparse.Namespace) -> None:
    data = json.dumps(result, indent=1)
    if options.json is not None:
        options.json.write_text(data)
    if options.no_report:
        return
    name = f"{result['date'][:10]}-{environment.slug(result['environment']['cpu'])}"
    folder = options.report or ROOT / "benchmarks/reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.md").write_text(text)
    (folder / "cpu.json").write_text(data)
    print(f"written to {_shown(folder)}", file=sys.stderr)


def _shown(path: Path) -> str:
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=_positive, default=MIN_ROUNDS, help="default %(default)s; a report should have no fewer")
    add("--steps", type=_positive, default=20, help="denoising steps (%(default)s)")
    add("--frames", type=_positive, default=33, help="%(default)s")
    add("--height", type=_positive, default=96, help="%(default)s")
    add("--width", type=_positive, default=96, help="%(default)s")
    add("--guidance", type=float, default=3.0, help="%(default)s")
    add("--threads", type=_positive, default=2, help="of each provider (%(default)s)")
    add("--model", type=Path, default=MODEL, help="folder in the Diffusers layout; default: the bundled model")
    add("--json", type=Path, help="also write the numbers to this file")
    add("--report", type=Path, help="folder to write to instead of benchmarks/reports/<date>-<cpu>")
    add("--no-report", action="store_true", help="write no report")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {text}")
    return value


if __name__ == "__main__":
    raise SystemExit(main())

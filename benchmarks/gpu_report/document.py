"""The report in words, from its rows alone: so it can be written whatever was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_report import forward
from benchmarks.gpu_report.rows import Row, Rows
from glimt_kernels.bench import goals
from glimt_kernels.bench.compare import SLACK, Results
from glimt_kernels.bench.report import kernels, listing, pictures


def _seconds(shape: str, provider: str) -> Any:
    def measure(rows: goals.Rows) -> float | None:
        wanted = ("forward", shape, provider)
        found = [row for row in rows if (row["op"], row["shape"], row["provider"]) == wanted and "median_ms" in row]
        return float(found[-1]["median_ms"]) / 1000 if found else None

    return measure


FORWARD_GOALS = (
    goals.Goal("Wan 1.3B forward, 480x832x81, bf16", 0.50, _seconds("wan-1.3b-480p", "glimt"), True, "s"),
    goals.Goal("Wan 1.3B forward, 8-bit", 0.36, _seconds("wan-1.3b-480p", "glimt 8-bit"), True, "s"),
)


@dataclass(frozen=True)
class Around:
    """What is not in the rows.

    Attributes:
        machine: device, versions, clocks.
        problems: why the work ended early, where no row says so.
        cut: by part, what there was no time for.
        used_s: seconds of this run.
    """

    machine: Mapping[str, Any]
    problems: Sequence[str]
    cut: Mapping[str, Sequence[str]]
    used_s: float


def text(rows: Rows, results: Results | None, around: Around) -> str:
    """``report.md``; ``results`` is None where no worker came so far as to measure the device."""
    measured = [*rows.of("kernels"), *rows.of(forward.PART)]
    return f"""# GPU report: {around.machine["device"]}

{_verdict(rows, around.problems)} {around.used_s:.0f} s of this run. {_cut(around.cut)}

## Goals

{goals.table(measured, (*goals.GOALS, *FORWARD_GOALS))}

## Correctness

{_correctness(rows.of("correctness"))}

## One forward, random weights

glimt runs as its engine does, with text and time prepared once per request; Diffusers computes them in every forward.
Weights are the same, drawn anew for each: they are timed one after another, and each row is kept at once. Errors are
against float32, of two layers of the same width on a small clip.

{_forward(rows.of(forward.PART))}

## Kernels

{kernels(results) if results else "Nothing was measured."}

{pictures(results) if results else ""}

## Machine

{listing(around.machine)}
"""


def _verdict(rows: Rows, problems: Sequence[str]) -> str:
    wrong = rows.failures()
    early = "".join(f"**It ended early:** {problem}.\n\n" for problem in problems)
    if not wrong:
        return early + "Nothing that ran is wrong."
    lines = "\n".join(
        f"- {row['op']}, {row['shape']}, {row['dtype']}, {row['provider']}: {row['refused']}" for row in wrong
    )
    return f"{early}**{len(wrong)} results are wrong:**\n\n{lines}\n\n"


def _cut(cut: Mapping[str, Sequence[str]]) -> str:
    """What there was no time for, part by part."""
    parts = [f"- {part}: {', '.join(names)}" for part, names in cut.items() if names]
    if not parts:
        return "Nothing was cut."
    return "**Cut, for want of time** (the same command goes on from here):\n\n" + "\n".join(parts)


def _correctness(rows: Sequence[Row]) -> str:
    """How many cases of each implementation are right, and why others did not run."""
    lines = [
        "| op | provider | right | wrong | worst error | most, in plain PyTorch's errors |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for op, provider in dict.fromkeys((row["op"], row["provider"]) for row in rows if "absent" not in row):
        mine = [row for row in rows if (row["op"], row["provider"]) == (op, provider) and "absent" not in row]
        wrong = sum(row["wrong"] for row in mine)
        judged = [row for row in mine if "relative_l2" in row]
        cells = ["", ""]
        if judged:
            most = max(row["relative_l2"] / max(row["honest_l2"], SLACK) for row in judged)
            cells = [f"{max(row['relative_l2'] for row in judged):.1e}", f"{most:.2f}"]
        lines.append(f"| {op} | {provider} | {len(mine) - wrong} | {wrong} | {cells[0]} | {cells[1]} |")
    absent = dict.fromkeys((row["provider"], row["absent"]) for row in rows if "absent" in row)
    return "\n".join([*lines, "", *(f"- {provider} did not run: {reason}" for provider, reason in absent)])


def _forward(rows: Sequence[Row]) -> str:
    lines = [
        "| model | provider | ms | against Diffusers | TFLOP/s | of GEMM | error | peak GiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = {row["shape"]: row["median_ms"] for row in rows if row["provider"] == "diffusers" and "median_ms" in row}
    for row in rows:
        if "median_ms" not in row:
            reason = row.get("absent") or row.get("refused")
            lines.append(f"| {row['shape']} | {row['provider']} | {reason} | | | | | |")
            continue
        cells = [
            f"{row['median_ms']:.1f} ({row['p20_ms']:.1f} - {row['p80_ms']:.1f})",
            f"{base[row['shape']] / row['median_ms']:.2f}x" if row["shape"] in base else "",
            f"{row['tflops']:.3g}",
            f"{100 * row['of_gemm']:.0f} %",
            f"{row['relative_l2']:.1e}",
            f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "",
        ]
        lines.append(f"| {row['shape']} | {row['provider']} | {' | '.join(cells)} |")
    return "\n".join(lines)

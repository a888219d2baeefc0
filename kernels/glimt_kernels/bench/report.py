"""Rows of the kernel benchmark as Markdown: one table a shape and op, in the order in which each was begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glimt_kernels.bench import goals

if TYPE_CHECKING:
    from glimt_kernels.bench.compare import Results

_COLUMNS = ("provider", "ms", "against eager", "TFLOP/s", "of GEMM", "GB/s", "of copy", "error", "peak MiB")
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|---|{'---:|' * (len(_COLUMNS) - 1)}"
PLOTS = {"roofline.png": "Roofline", "eager.png": "Against eager", "error.png": "Error and speed"}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """All tables, each under a heading."""
    parts = []
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in rows):
        members = [row for row in rows if (row["op"], row["shape"]) == (op, shape)]
        base = next((row["median_ms"] for row in members if row["provider"] == "eager" and "median_ms" in row), None)
        lines = [_line(row, base) for row in members if "median_ms" in row]
        refused = [f"- {row['provider']}: {row['refused']}" for row in members if "refused" in row]
        parts.append("\n".join([f"### {op}, {shape}", "", _HEAD, *lines, *([""] if refused else []), *refused, ""]))
    return "\n".join(parts)


def _line(row: Mapping[str, Any], base: float | None) -> str:
    cells = [
        row["provider"],
        f"{row['median_ms']:.3f} ({row['p20_ms']:.3f} - {row['p80_ms']:.3f})",
        f"{base / row['median_ms']:.2f}x" if base is not None else "",
        f"{row['tflops']:.3g}",
        f"{100 * row['of_gemm']:.0f} %",
        f"{row['gbps']:.3g}",
        f"{100 * row['of_copy']:.0f} %",
        f"{row['relative_l2']:.1e}",
        f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else "",
    ]
    return f"| {' | '.join(cells)} |"


def kernels(results: Results) -> str:
    """The section of the kernels: how it was measured, and the tables."""
    gemm, copy = results.rates.gemm_tflops, results.rates.copy_gbps
    return f"""Measured in this run: matrix products {gemm:.3g} TFLOP/s in the working dtype, copies {copy:.3g} GB/s;
what is *of GEMM* and *of copy* is of these. Times are medians of single calls (20th to 80th percentile), caches emptied
before each on a GPU, providers interleaved. Errors are relative L2 against float64, on the very inputs that were timed;
who is more than twice as wrong as plain PyTorch in the same dtype gets no time.

{markdown(results.rows)}
"""


def pictures(results: Results) -> str:
    """The plots, or why there are none."""
    notes = "\n".join(f"- {note}" for note in results.notes)
    return notes or "\n".join(f"![{title}]({name})" for name, title in PLOTS.items())


def listing(values: Mapping[str, Any]) -> str:
    """Names and values as a Markdown list."""
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def document(results: Results) -> str:
    """The report of ``glimt bench kernels``."""
    return f"""# Kernels

{goals.table(results.rows)}

{kernels(results)}

{pictures(results)}

{listing(results.around)}
"""

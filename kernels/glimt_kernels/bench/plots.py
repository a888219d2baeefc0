"""Three pictures of a run: where every kernel stands under the roof, against eager, and error beside speed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glimt_kernels.bench.timing import Rates


def draw(rows: Sequence[Mapping[str, Any]], machine: Rates, folder: Path) -> list[str]:
    """Write ``roofline.png``, ``eager.png`` and ``error.png``; or say why there are none."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no plots: matplotlib is not installed; run: pip install matplotlib"]
    timed = [row for row in rows if "median_ms" in row]
    if not timed:
        return ["no plots: nothing was timed"]
    _roofline(timed, machine).savefig(folder / "roofline.png", dpi=120)
    _against_eager(timed).savefig(folder / "eager.png", dpi=120)
    _error(timed).savefig(folder / "error.png", dpi=120)
    return []


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _by_provider(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    names = dict.fromkeys(row["provider"] for row in rows)
    return {name: [row for row in rows if row["provider"] == name] for name in names}


def _roofline(rows: Sequence[Mapping[str, Any]], machine: Rates) -> Any:
    figure, axes = _axes("Every kernel under the measured roof")
    low, high = min(r["intensity"] for r in rows) / 3, max(1000.0, max(r["intensity"] for r in rows) * 3)
    x = np.geomspace(low, high, 200)
    axes.plot(x, np.minimum(x * machine.copy_gbps / 1000, machine.gemm_tflops), color="black", lw=1)
    for name, members in _by_provider(rows).items():
        axes.scatter([r["intensity"] for r in members], [r["tflops"] for r in members], s=14, label=name)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axes.legend()
    return figure


def _against_eager(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = _axes("Times as fast as eager PyTorch (above 1 is faster)")
    cases = list(dict.fromkeys((row["op"], row["shape"]) for row in rows))
    base = {(r["op"], r["shape"]): r["median_ms"] for r in rows if r["provider"] == "eager"}
    others = {name: members for name, members in _by_provider(rows).items() if name != "eager"}
    for index, (name, members) in enumerate(others.items()):
        found = {(r["op"], r["shape"]): r["median_ms"] for r in members}
        heights = [base[c] / found[c] if c in base and c in found else 0 for c in cases]
        axes.bar(np.arange(len(cases)) + 0.8 * index / len(others), heights, 0.8 / len(others), label=name)
    axes.axhline(1, color="black", lw=1)
    axes.set_xticks(np.arange(len(cases)), [f"{op}\n{shape}" for op, shape in cases], rotation=60, fontsize=7)
    axes.legend()
    return figure


def _error(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = _axes("Error and speed: up and to the left is better")
    base = {(r["op"], r["shape"]): r["median_ms"] for r in rows if r["provider"] == "eager"}
    for name, members in _by_provider(rows).items():
        kept = [r for r in members if (r["op"], r["shape"]) in base]
        speeds = [base[r["op"], r["shape"]] / r["median_ms"] for r in kept]
        axes.scatter([max(r["relative_l2"], 1e-9) for r in kept], speeds, s=14, label=name)
    axes.set(xscale="log", yscale="log", xlabel="relative L2 error against float64", ylabel="times as fast as eager")
    axes.legend()
    return figure

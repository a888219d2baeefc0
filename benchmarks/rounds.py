"""The rounds of a benchmark of two providers: fresh processes, processes that stay, and whether the frames agree."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import BenchmarkError, Worker, order
from benchmarks.requests import Request

MIN_PSNR_DB = 60.0


@dataclass
class Measured:
    """What was measured of one provider, one entry a round; ``wall`` and ``cpu`` in seconds by name."""

    cold_wall: list[dict[str, float]] = field(default_factory=list)
    cold_cpu: list[dict[str, float]] = field(default_factory=list)
    warm_wall: list[dict[str, float]] = field(default_factory=list)
    warm_cpu: list[dict[str, float]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def run_rounds(
    providers: Mapping[str, str], model: str, threads: int, asked: Sequence[Request], say: Callable[[str], None]
) -> tuple[dict[str, Measured], list[float]]:
    """One round for every two requests of ``asked``, and the last one to warm up with.

    Args:
        providers: ``module:Class`` by name.
        say: takes a line of progress.

    Returns:
        What was measured of each provider, and the PSNR of each pair of clips, in dB.

    Raises:
        BenchmarkError: a provider fails, or frames differ.
    """
    names, rounds = list(providers), len(asked) // 2
    measured = {name: Measured() for name in names}
    psnr_db: list[float] = []

    def start(name: str) -> Worker:
        return Worker(providers[name], model, threads)

    with tempfile.TemporaryDirectory() as folder:
        stay = {}
        try:
            for name in names:
                stay[name] = start(name)
                stay[name].ask({"do": "load"})
                stay[name].ask({"do": "run", "request": asked[-1].to_dict()})  # warms up: not counted
            for index in range(rounds):
                first, second = asked[2 * index : 2 * index + 2]
                for name in order(names, index):
                    with start(name) as worker:
                        _cold(worker, first, Path(folder, f"{name}-cold.npy"), measured[name])
                for name in order(names, index):
                    _warm(stay[name], second, Path(folder, f"{name}-warm.npy"), measured[name])
                kinds = ("cold", "warm")
                psnr_db += [agreement(*(Path(folder, f"{name}-{kind}.npy") for name in names)) for kind in kinds]
                say(_progress(index, rounds, measured, psnr_db))
        finally:
            for worker in stay.values():
                worker.close()
    return measured, psnr_db


def _cold(worker: Worker, request: Request, frames: Path, into: Measured) -> None:
    loaded = worker.ask({"do": "load"})
    ran = worker.ask({"do": "run", "request": request.to_dict(), "frames": str(frames)})
    for kind, rows in (("wall_s", into.cold_wall), ("cpu_s", into.cold_cpu)):
        load, text, whole = loaded["load"][kind], ran["stages"]["text"][kind], ran["stages"]["whole"][kind]
        rows.append({"load": load, "load + text": load + text, "load + whole": load + whole})
    into.cold_wall[-1]["peak_rss_mib"] = ran["peak_rss_bytes"] / 2**20
    into.about = ran["about"]


def _warm(worker: Worker, request: Request, frames: Path, into: Measured) -> None:
    ran = worker.ask({"do": "run", "request": request.to_dict(), "frames": str(frames)})
    for kind, rows in (("wall_s", into.warm_wall), ("cpu_s", into.warm_cpu)):
        rows.append({name: span[kind] for name, span in ran["stages"].items()})


def agreement(ours: Path, other: Path) -> float:
    """PSNR of two saved clips in dB; see :func:`require_agreement`."""
    return require_agreement(np.load(ours), np.load(other), "the frames differ")


def require_agreement(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], what: str) -> float:
    """PSNR of two clips in dB (120 where they are equal). Raises BenchmarkError below ``MIN_PSNR_DB``."""
    if a.shape != b.shape:
        raise BenchmarkError(f"frames differ in shape: {a.shape} and {b.shape}")
    mean = float(((a.astype(np.float64) - b) ** 2).mean())
    psnr_db = 10 * float(np.log10(255**2 / max(mean, 255**2 * 1e-12)))
    if psnr_db < MIN_PSNR_DB:
        raise BenchmarkError(f"{what}: PSNR {psnr_db:.1f} dB, {MIN_PSNR_DB:.0f} dB is the least")
    return round(psnr_db, 1)


def _progress(index: int, rounds: int, measured: dict[str, Measured], psnr_db: list[float]) -> str:
    parts = [
        f"{name} {one.warm_wall[-1]['whole']:.1f} s ({one.warm_cpu[-1]['whole']:.1f} s of processor time)"
        for name, one in measured.items()
    ]
    return f"round {index + 1} of {rounds}: {', '.join(parts)}; PSNR {min(psnr_db[-2:]):.1f} dB"

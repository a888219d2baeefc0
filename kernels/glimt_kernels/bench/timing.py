"""Timing that can be believed: interleaved providers, caches emptied inside the loop, medians with their spread.

On a GPU: CUDA events around each single call, a buffer larger than the L2 cache overwritten before it, and the
machine's own matrix and copy rates measured in the same run. The device is kept busy until the call's launches are
enqueued, so that what Python and the driver take on the host is not counted as the kernels' time. On a CPU: wall time,
and caches as the last call left them, so that ratios are worth something and absolute numbers little.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]
# Rounds that there are however long they take.
FEWEST = 3
# The device waits twice as long as the call took on the host, and a little for the events, but no longer than this: a
# call of so many launches keeps the device busy by itself. In cycles of a clock faster than any chip's, so that on a
# slower one it is longer.
_LITTLE_MS, _LONGEST_MS, _CYCLES_PER_MS = 0.05, 20.0, 3_000_000


@dataclass(frozen=True)
class Timing:
    """Milliseconds of single calls, and the most bytes that one call had allocated (0 on a CPU: not known)."""

    values_ms: tuple[float, ...]
    peak_bytes: int = 0

    @property
    def median_ms(self) -> float:
        return statistics.median(self.values_ms)

    def percentile_ms(self, percent: int) -> float:
        """Nearest rank."""
        ranked = sorted(self.values_ms)
        return ranked[min(len(ranked) - 1, max(0, round(percent / 100 * (len(ranked) - 1))))]


class Clock:
    """Times single calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush: Tensor | None = None
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(max(size, 64 << 20), dtype=torch.uint8, device=device)

    def ms(self, call: Call, host_ms: float = 0.0) -> float:
        """One call, after emptying the cache; ``host_ms`` is what enqueuing it takes on the host."""
        if self._flush is None:
            began = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - began)
        self._flush.zero_()
        torch.cuda._sleep(round(min(2 * host_ms + _LITTLE_MS, _LONGEST_MS) * _CYCLES_PER_MS))  # type: ignore[no-untyped-call]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end)

    def _warm_up(self, call: Call) -> tuple[float, int]:
        """Two calls, for what is compiled and chosen at the first one: (milliseconds that the second took on the host
        until it was enqueued, bytes that it had allocated beyond what was there, at most); nothing known on a CPU."""
        call()
        if self._flush is None:
            call()
            return 0.0, 0
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before, began = torch.cuda.memory_allocated(self.device), time.perf_counter()
        call()
        host_ms = 1000 * (time.perf_counter() - began)
        torch.cuda.synchronize(self.device)
        return host_ms, torch.cuda.max_memory_allocated(self.device) - before

    def compare(self, calls: Mapping[str, Call], repeats: int, limit_s: float = math.inf) -> dict[str, Timing]:
        """``repeats`` calls of each, round after round in rotating order; two calls of each warm up.

        After ``limit_s`` seconds of rounds there is no further one, but at least three there are (or ``repeats``).
        """
        warm = {name: self._warm_up(call) for name, call in calls.items()}
        values: dict[str, list[float]] = {name: [] for name in calls}
        began = time.perf_counter()
        for index in range(repeats):
            if index >= FEWEST and time.perf_counter() - began >= limit_s:
                break
            for name in _rotated(list(calls), index):
                values[name].append(self.ms(calls[name], warm[name][0]))
        return {name: Timing(tuple(values[name]), warm[name][1]) for name in calls}


def _rotated(names: list[str], index: int) -> list[str]:
    """Who goes first alternates, so that no drift of the machine favours one."""
    shift = index % max(len(names), 1)
    return [*names[shift:], *names[:shift]]


@dataclass(frozen=True)
class Rates:
    """What this device really does: TFLOP/s of a large matrix product, GB/s of a copy (read and write counted)."""

    gemm_tflops: float
    copy_gbps: float


def rates(clock: Clock, dtype: torch.dtype) -> Rates:
    """Measured: an 8192^3 product and a copy of 1 GiB on a GPU, smaller ones on a CPU."""
    big = clock.device.type == "cuda"
    n, size = (8192, 1 << 30) if big else (1024, 64 << 20)
    a, b = (torch.randn(n, n, dtype=torch.float32, device=clock.device).to(dtype) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=clock.device).zero_()
    target = torch.empty_like(source)
    found = clock.compare({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, 10)
    gemm, copy = (statistics.median(found[name].values_ms) for name in ("gemm", "copy"))
    return Rates(2 * n**3 / gemm / 1e9, 2 * size / copy / 1e6)

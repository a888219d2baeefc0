"""What the benchmark's clock counts, on a simulated GPU: a queue that works behind the host, with latencies of both."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glimt_kernels.bench import timing
from glimt_kernels.bench.timing import Clock, Timing

MHZ = 1500.0


class Gpu:
    """Times in milliseconds: what the host has come to, and when the device will have done what is enqueued."""

    def __init__(self) -> None:
        self.host = self.device = 0.0
        self.slept: list[float] = []

    def enqueue(self, host: float, device: float) -> None:
        self.host += host
        self.device = max(self.device, self.host) + device

    def synchronize(self, device: object = None) -> None:
        self.host = max(self.host, self.device) + 0.01

    def sleep(self, cycles: int) -> None:
        assert isinstance(cycles, int)
        self.slept.append(cycles / (1000 * MHZ))
        self.enqueue(0.004, self.slept[-1])


@dataclass
class Event:
    gpu: Gpu
    at: float = 0.0

    def record(self) -> None:
        self.gpu.enqueue(0.003, 0.0)
        self.at = self.gpu.device

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    cuda = {
        "Event": lambda enable_timing: Event(made),
        "synchronize": made.synchronize,
        "_sleep": made.sleep,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=50 << 20),
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 100,
        "max_memory_allocated": lambda device: 107,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    flush = SimpleNamespace(zero_=lambda: made.enqueue(0.005, 0.03))
    monkeypatch.setattr(timing.torch, "empty", lambda size, **about: flush if size == 100 << 20 else None)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.host / 1000)
    return made


def launches(gpu: Gpu, *each: tuple[float, float]) -> Any:
    return lambda: [gpu.enqueue(host, device) for host, device in each] and None


def test_what_launching_takes_on_the_host_is_not_counted(gpu: Gpu) -> None:
    """Twelve small kernels whose launches take the host four times as long as the device computes."""
    clock = Clock(torch.device("cuda", 0))
    found = clock.compare({"eager": launches(gpu, *[(0.02, 0.005)] * 12), "one": launches(gpu, (0.3, 0.04))}, 5)
    assert found["eager"].median_ms == pytest.approx(12 * 0.005)
    assert found["one"].median_ms == pytest.approx(0.04)
    assert found["one"].peak_bytes == 7 and len(found["one"].values_ms) == 5


def test_a_call_that_keeps_the_device_busy_by_itself_is_not_waited_for_long(gpu: Gpu) -> None:
    clock = Clock(torch.device("cuda", 0))
    found = clock.compare({"forward": launches(gpu, *[(0.2, 1.0)] * 400)}, 3)
    assert found["forward"].median_ms == pytest.approx(400.0)
    assert max(gpu.slept) <= 50


def test_rounds_end_by_time_but_not_before_the_third(gpu: Gpu) -> None:
    clock = Clock(torch.device("cuda", 0))
    slow, fast = launches(gpu, (0.1, 2000.0)), launches(gpu, (0.1, 100.0))
    assert len(clock.compare({"slow": slow}, 20, limit_s=5.0)["slow"].values_ms) == 3
    assert len(clock.compare({"slow": slow}, 2, limit_s=5.0)["slow"].values_ms) == 2
    assert len(clock.compare({"slow": slow}, 20)["slow"].values_ms) == 20
    both = clock.compare({"slow": fast, "fast": fast}, 1000, limit_s=5.0)
    assert 24 <= len(both["slow"].values_ms) == len(both["fast"].values_ms) <= 26


def test_percentiles_are_of_the_values_themselves() -> None:
    found = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (found.percentile_ms(20), found.median_ms, found.percentile_ms(80)) == (2.0, 3.0, 4.0)

"""Where a benchmark ran, and whether the machine had time for it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

BUSY_SHARE = 0.1  # of the processors, used by others
_PACKAGES = ("glimt", "torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy")


def describe() -> dict[str, Any]:
    """Processor, system and versions, for a report."""
    from glimt.env import cpu_count, package_version, total_memory_bytes

    return {
        "cpu": cpu_name(),
        "processors": cpu_count(),
        "memory_gib": round((total_memory_bytes() or 0) / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := package_version(name))},
        "commit": commit(),
    }


def cpu_name() -> str:
    """As the processor calls itself, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """Lower case, words joined by dashes: a part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def load_average() -> float | None:
    """Of the last minute; ``None`` where the system keeps none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class Bystanders:
    """How much of the machine others use: from the busy time of all processors, less what we know is ours."""

    def __init__(self) -> None:
        self._wall, self._busy = time.perf_counter(), _busy_s()

    def processors(self, ours_s: float) -> float | None:
        """Processors kept busy by others since this was made, when ``ours_s`` seconds of them were ours."""
        now = _busy_s()
        if now is None or self._busy is None:
            return None
        wall = time.perf_counter() - self._wall
        return round(max(now - self._busy - ours_s, 0.0) / wall, 2)


def others_now(seconds: float = 1.0) -> float | None:
    """Processors busy while we sleep."""
    watch = Bystanders()
    time.sleep(seconds)
    return watch.processors(0.0)


def busy_warning(others: float | None) -> str:
    """What to say of a machine on which others keep that many processors busy; "" when it is quiet enough."""
    from glimt.env import cpu_count

    if others is None or others <= BUSY_SHARE * cpu_count():
        return ""
    return (
        f"others keep {others:.1f} of {cpu_count()} processors busy: seconds are too high and scatter;"
        " trust ratios, and processor time more than wall time"
    )


def _busy_s() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, *interrupts = (int(field) for field in fields[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def commit() -> str:
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip()

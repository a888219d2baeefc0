"""What this process stands on: package versions, processors, memory. Standard library only; reads, never sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGES = ("glimt", "torch", "numpy", "transformers", "safetensors", "diffusers", "av")


def package_version(name: str) -> str | None:
    """The installed version of a package, without importing it; ``None`` when it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in _PACKAGES:
        version = package_version(name)
        if version is not None:
            found[name] = version
    return found


def cpu_count() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def total_memory_bytes() -> int | None:
    """Main memory of the machine, or of the control group when that is less; ``None`` where it cannot be read."""
    total = _meminfo("MemTotal")
    limits = [value for value in (total, _cgroup_number("memory.max")) if value is not None]
    return min(limits) if limits else None


def available_memory_bytes() -> int | None:
    """Main memory that can be used without swapping, inside the control group's limit; ``None`` when not known."""
    free = _meminfo("MemAvailable")
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is not None and used is not None:
        room = max(limit - used, 0)
        return room if free is None else min(free, room)
    return free


def rss_bytes() -> int:
    """Resident memory of this process now; 0 where it cannot be read."""
    return _status("VmRSS")


def peak_rss_bytes() -> int:
    """The most resident memory this process has had; 0 where it cannot be read."""
    peak = _status("VmHWM")
    if peak or sys.platform == "win32":
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _meminfo(key: str) -> int | None:
    return _kilobytes(Path("/proc/meminfo"), key)


def _status(key: str) -> int:
    return _kilobytes(Path("/proc/self/status"), key) or 0


def _kilobytes(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_number(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None

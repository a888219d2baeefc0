"""What this process stands on: package versions, processors, memory. Standard library only; reads, never sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

_PACKAGES = (
    *("glimt", "torch", "numpy", "transformers", "tokenizers", "ftfy", "regex"),
    *("pillow", "safetensors", "huggingface_hub", "diffusers", "av"),
)


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
    """Main memory of the machine, or of a control group above when that is less; ``None`` where it cannot be read."""
    limits = [_meminfo("MemTotal"), *(group.limit for group in _memory_groups())]
    return min((value for value in limits if value is not None), default=None)


def available_memory_bytes() -> int | None:
    """Main memory that can be used without swapping, inside every control group's limit; ``None`` when not known.

    Pages of files that the kernel may drop count as free.
    """
    rooms = [_meminfo("MemAvailable"), *(max(group.limit - group.used, 0) for group in _memory_groups())]
    return min((value for value in rooms if value is not None), default=None)


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
    for line in _lines(path):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


class _Group(NamedTuple):
    """A control group's limit of memory, and what of it is in use and cannot simply be dropped."""

    limit: int
    used: int


# Where a version of control groups is mounted, and its names of limit, use, and droppable pages of files.
_V2 = ("", "memory.max", "memory.current", "inactive_file")
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _memory_groups(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[_Group]:
    """The control groups that bound this process's memory: its own and all above it, those that have a limit."""
    found = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, limit, used, droppable = _V1 if controllers else _V2
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            group = _group(mount / root / part, limit, used, droppable)
            found += [group] if group is not None else []
    return found


def _group(folder: Path, limit: str, used: str, droppable: str) -> _Group | None:
    most, now = _number(folder / limit), _number(folder / used)
    if most is None or now is None:
        return None
    stat = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
    return _Group(most, max(now - int(stat.get(droppable, 0)), 0))


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

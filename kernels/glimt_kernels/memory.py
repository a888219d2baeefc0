"""Keeping freed memory: large tensors that come and go otherwise pay for fresh pages each time.

The C library returns a large block to the system as soon as it is freed, and the next one of that size is mapped anew,
page by page, at its first touch. Where that is slow (virtual machines: 2.5 us a page was measured), writing a fresh
40 MB tensor takes eight times as long as writing one that reuses memory.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1


def keep_freed_memory(below_bytes: int = 1 << 30) -> bool:
    """From now on let this process keep what tensors of up to ``below_bytes`` free, for the next ones of their kind.

    A setting of the whole process (glibc's ``mallopt``), so for an application to decide, not for an import. The
    process keeps its peak of memory until :func:`release_freed_memory`.

    Returns:
        Whether it was done; false where the C library has no such setting.

    Raises:
        ValueError: ``below_bytes`` is not in 1 ... 2**31 - 1.
    """
    if not 0 < below_bytes <= _LARGEST:
        raise ValueError(f"below_bytes must be in 1 ... {_LARGEST}; found {below_bytes}")
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    # Freed blocks stay until twice the largest lies unused at the end of the heap.
    trim = min(2 * below_bytes, _LARGEST)
    return bool(mallopt(_M_MMAP_THRESHOLD, below_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))


def release_freed_memory() -> bool:
    """Return to the system what :func:`keep_freed_memory` kept; whether there was anything to return."""
    malloc_trim = _glibc("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(ctypes.c_size_t(0)))


def _glibc(name: str) -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None

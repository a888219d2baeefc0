"""Keeping freed memory: asked for by hand, undone by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from glimt_kernels.memory import keep_freed_memory

PROBE = """
import os, psutil, torch
from glimt_kernels.memory import keep_freed_memory, release_freed_memory
assert keep_freed_memory(1 << 28)
process = psutil.Process()
start = process.memory_info().rss
x = torch.zeros(1 << 24); y = torch.zeros(1)   # 64 MB
del x
kept = process.memory_info().rss - start
release_freed_memory()
print(kept >> 20, process.memory_info().rss - start >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not built for this processor: glibc only")
def test_freed_memory_is_kept_until_released() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    kept, left = map(int, done.stdout.split())
    assert kept >= 60
    assert left <= 8


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0"):
        keep_freed_memory(0)

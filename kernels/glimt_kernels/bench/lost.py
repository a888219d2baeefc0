"""After some faults, an illegal access above all, a process gets nothing but errors from its GPU until it ends.

What runs after such a fault is innocent of what is said of it. So the run ends there, the fault is kept as the row of
the provider that made it, and the next process passes over that provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from glimt_kernels.bench.settings import BenchError

Row = dict[str, Any]
ALL = "all"  # in the place of a provider: what all of them need


class DeviceLostError(BenchError):
    """No further call of this process can run on its GPU. ``row`` is that of the fault."""

    def __init__(self, provider: str, reason: str) -> None:
        super().__init__(
            f"{provider} left the GPU unusable for this process: {reason}; the same command with the same folder for "
            "its output goes on without it"
        )
        self.row: Row = {"provider": provider, "refused": reason, "lost": True}


def brief(error: Exception) -> str:
    """An exception as the reason in a row."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def raise_if_lost(provider: str, error: Exception) -> None:
    """To be called with every error of a provider.

    Raises:
        DeviceLostError: after it the device does not even answer that it is done.
    """
    if isinstance(error, DeviceLostError):
        raise error
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    try:
        torch.cuda.synchronize()
    except Exception as still:
        raise DeviceLostError(provider, brief(error)) from still


def is_done(rows: Iterable[Mapping[str, Any]], asked: Sequence[str] = ()) -> bool:
    """Whether the rows of a workload are all that there will be of it: ``asked`` (or some), but for what was lost."""
    lost: set[str] = set()
    have: set[str] = set()
    for row in rows:
        (lost if row.get("lost") else have).add(str(row["provider"]))
    return ALL in lost | have or (bool(have) and lost | have >= set(asked))


def lost_in(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The providers that are not to be called again."""
    return {str(row["provider"]) for row in rows if row.get("lost")}

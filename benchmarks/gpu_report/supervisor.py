"""Has the work done by processes of their own, and goes on with another where one ended before its work.

A kernel may take the process with it, or wait for ever. Then its row says so, and the next worker passes over it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from benchmarks.gpu_report import forward
from benchmarks.gpu_report.budget import Budget
from benchmarks.gpu_report.rows import Row, Rows
from benchmarks.gpu_report.worker import DONE, LOST, REFUSED
from benchmarks.harness import ROOT

# What is still in a call so long after its part's time is over is no longer computing.
GRACE_S = 15.0


def supervise(command: Sequence[str], rows: Rows, budget: Budget, ends: Mapping[str, float]) -> list[str]:
    """Run ``command`` until its work is done or the time is over; why it was not, where no row says so.

    Args:
        command: of a worker; the seconds that are used are added at its end.
        ends: by part, the share of the budget by which it must be done.
    """
    while budget.used_s() < max(ends.values()) * budget.seconds:
        rows.forget_attempt()
        known = len(rows.lost())
        code, waited = _run([*command, str(budget.used_s())], rows, budget, ends)
        attempt = rows.attempt()
        rows.forget_attempt()
        rows.read()
        if code == DONE:
            return []
        if code == REFUSED or (code == LOST and len(rows.lost()) == known):
            return [f"the worker ended with code {code}; its last words are above"]
        if code != LOST:
            if not attempt:
                return [f"the worker ended before it called anything: {_ending(code)}"]
            reason = f"did not come back within {GRACE_S:.0f} s of the end of its time" if waited else _ending(code)
            rows.add(str(attempt.pop("part")), [_blamed(attempt, reason)])
        print(f"{rows.lost()[-1]['provider']} is passed over; a new worker goes on", flush=True)
    return []


def _run(command: Sequence[str], rows: Rows, budget: Budget, ends: Mapping[str, float]) -> tuple[int, bool]:
    """(exit code, whether it had to be stopped)."""
    worker = subprocess.Popen(command, cwd=ROOT)
    try:
        while worker.poll() is None:
            end = ends.get(rows.attempt().get("part", ""), max(ends.values()))
            if budget.used_s() > end * budget.seconds + GRACE_S:
                worker.kill()
                return worker.wait(), True
            time.sleep(0.1)
    except BaseException:
        worker.kill()
        worker.wait()
        raise
    return worker.returncode, False


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process ended with code {code}"
    return f"the process died of {signal.Signals(-code).name}"


def _blamed(attempt: Row, reason: str) -> Row:
    """A peer that breaks is no fault of glimt's."""
    return {**attempt, "refused": reason, "lost": True, "wrong": attempt["provider"] not in forward.PEERS}

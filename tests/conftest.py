"""What all tests share: few threads, no network, quiet where asked for, and an account of what was skipped.

A skipped test proves nothing, so each must say why, and in CI there may be no more of them than are expected here. A
new reason to skip is a change to this table, seen in review.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["GLIMT_TUNED"] = "off"  # what was tuned on this machine is not what is tested
os.environ["GLIMT_PREVIEWS"] = "off"  # nor are maps that were fitted here before
if not Path("/dev/nvidiactl").exists():  # asking PyTorch would import Triton before the variable is set
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

# Beginning of a skip's reason -> how many such skips CI (no GPU) expects at most.
EXPECTED_SKIPS: dict[str, int] = {
    "needs a CUDA device": 20,
    "not built for this processor": 60,
    "needs nvcc": 16,
}

_skips: dict[str, list[str]] = {}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ").strip()


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skips.setdefault(_reason(report), []).append(report.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def unexpected_skips(skips: dict[str, list[str]]) -> list[str]:
    """Complaints about ``skips`` (reason -> tests): no reason given, reason unknown, or more than expected."""
    complaints = []
    counts = dict.fromkeys(EXPECTED_SKIPS, 0)
    for reason, tests in skips.items():
        known = next((key for key in EXPECTED_SKIPS if reason.startswith(key)), None)
        if reason in ("", "unconditional skip") or known is None:
            complaints.append(f"{len(tests)} skipped for {reason or 'no stated reason'!r}, e.g. {tests[0]}")
        else:
            counts[known] += len(tests)
    over = [(key, count) for key, count in counts.items() if count > EXPECTED_SKIPS[key]]
    return complaints + [f"{count} skipped for {key!r}, at most {EXPECTED_SKIPS[key]} expected" for key, count in over]


def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """With ``-q`` tests that pass or are skipped leave no mark but in the last line, which counts them."""
    as_meant = report.skipped or (report.passed and report.when == "call")
    if config.get_verbosity() >= 0 or not as_meant or hasattr(report, "wasxfail"):
        return None
    return report.outcome, "", ""


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    if os.environ.get("CI") and unexpected_skips(_skips) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for complaint in unexpected_skips(_skips):
        terminalreporter.write_line(f"unexpected skip: {complaint}", red=True)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))

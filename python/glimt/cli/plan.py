"""``glimt plan``: what a request would need, without running anything."""

from __future__ import annotations

import argparse

from glimt.cli.asking import Problems, generate_request, planned
from glimt.cli.outcome import Outcome


def run(namespace: argparse.Namespace) -> Outcome:
    """The plan, as the engine makes it."""
    problems = Problems()
    _, plan = planned(namespace, generate_request(namespace), problems)
    problems.raise_any()
    return Outcome(str(plan), plan.to_dict())

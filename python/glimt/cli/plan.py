"""``glimt plan``: what a request would need, without running anything."""

from __future__ import annotations

import argparse
from typing import Any

from glimt.cli.asking import Problems, engine_config, generate_request
from glimt.cli.outcome import Outcome


def run(namespace: argparse.Namespace) -> Outcome:
    """The plan, as the engine makes it."""
    plan = _plan(namespace)
    return Outcome(str(plan), plan.to_dict())


def _plan(namespace: argparse.Namespace) -> Any:
    problems = Problems()
    with problems.gathered():
        config = engine_config(namespace)
    with problems.gathered():
        request = generate_request(namespace)
    problems.raise_any()
    from glimt.engine import Engine

    return Engine.open(namespace.model, config, base=namespace.base).plan(request)

"""``glimt plan``: what a request would need, without running anything."""

from __future__ import annotations

import argparse
from typing import Any

from glimt.cli.asking import Problems, engine_config, generate_request


def run(namespace: argparse.Namespace) -> int:
    print(_plan(namespace))
    return 0


def run_json(namespace: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    plan: dict[str, Any] = _plan(namespace).to_dict()
    return 0, plan


def _plan(namespace: argparse.Namespace) -> Any:
    problems = Problems()
    with problems.gathered():
        config = engine_config(namespace)
    with problems.gathered():
        request = generate_request(namespace)
    problems.raise_any()
    from glimt.engine import Engine

    return Engine.load(namespace.model, config).plan(request)

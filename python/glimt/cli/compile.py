"""``glimt compile``: TRT engines of a model, each told as it is made."""

from __future__ import annotations

import argparse
import sys

from glimt.cli.outcome import Outcome


def run(namespace: argparse.Namespace) -> Outcome:
    """What was built, and where it is; a line for each on standard error meanwhile, for it may take long."""
    from glimt.compile.record import Build
    from glimt.compile.spec import CompileSpec
    from glimt.config import EngineConfig

    spec = CompileSpec(
        buckets=namespace.bucket,
        targets=namespace.target,
        backend=namespace.backend,
        precision=namespace.precision,
        guided=False if namespace.unguided else None,
    )
    from glimt.engine import Engine  # takes a second: PyTorch comes with it

    config = EngineConfig(
        device="cpu", engines=namespace.out, offline=namespace.offline, allow_pickle=bool(namespace.allow_pickle)
    )
    engines = []
    for engine in Engine.open(namespace.model, config, base=namespace.base).compiling(spec):
        state = "was there" if engine.reused else f"{engine.facts.seconds:.1f} s"
        print(f"{engine.component} {engine.bucket} for {engine.target}: {state}", file=sys.stderr, flush=True)
        engines.append(engine)
    build = Build(spec, tuple(engines))
    return Outcome(str(build), build.to_dict())

"""TRT engines for consumer cards, built here without one: what they weigh, and whether attention is fused.

    python -m benchmarks.compile_report [--case NAME,...] [--target sm_89,...] [--out FILE.md] [--write]

Cases are the bundled model whole and transformers of Wan's shapes with random weights, of two blocks or of all. No
engine is run: bytes, layers and kernels are what TensorRT-RTX says of them, seconds are of this machine. ``--write``
puts the cases that `make test` builds into its table, ``tests/compile/engines.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT
from glimt.compile.build import Network, build_engines
from glimt.compile.record import Build, BuiltEngine
from glimt.compile.spec import CompileSpec
from glimt.compile.store import ArtifactStore
from glimt.engine import Engine
from glimt.env import peak_rss_bytes
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.transformer import WanTransformer, keeps_fp32

TABLE = ROOT / "tests/compile/engines.json"
TARGETS = ("sm_86", "sm_89", "sm_120")
# What is compared; seconds are the machine's.
COMPARED = ("plan_bytes", "weights_bytes", "activation_bytes", "layers", "attentions", "fused_attentions")


@dataclass(frozen=True)
class WanCard:
    """The grids of Wan 2.1."""

    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8
    z_dim: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    size_multiple: tuple[int, int] = (16, 16)


@dataclass(frozen=True)
class Case:
    """A network and a size. ``config`` of ``None``: the bundled model. ``tested``: `make test` builds it."""

    config: WanTransformerConfig | None
    bucket: tuple[int, int, int]
    tested: bool = False


def _wan(heads: int, ffn: int, layers: int) -> WanTransformerConfig:
    return WanTransformerConfig(num_attention_heads=heads, ffn_dim=ffn, num_layers=layers)


CASES = {
    "glimt-world": Case(None, (96, 96, 33), tested=True),
    "wan-1.3b-2-blocks": Case(_wan(12, 8960, 2), (480, 832, 81), tested=True),
    "wan-14b-2-blocks": Case(_wan(40, 13824, 2), (720, 1280, 81)),
    "wan-1.3b": Case(_wan(12, 8960, 30), (480, 832, 81)),
}


def build(name: str, targets: Sequence[str], store: Path) -> Build:
    """The TRT engines of a case."""
    case = CASES[name]
    spec = CompileSpec(buckets=[case.bucket], targets=targets)
    if case.config is None:
        return Engine.open(device="cpu", engines=str(store)).compile(spec)
    config = case.config

    def load(dtype: torch.dtype) -> WanTransformer:
        return random_transformer(config, dtype)

    network = Network("transformer", f"random {name}", name, load, text_tokens=512)
    return Build(spec, tuple(build_engines(spec, [network], WanCard(), ArtifactStore(store), guided=True)))


def random_transformer(config: WanTransformerConfig, dtype: torch.dtype) -> WanTransformer:
    """One whose weights are drawn; the same each time."""
    with torch.device("meta"):
        model = WanTransformer(config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator).mul_(0.02).to(torch.float32 if keeps_fp32(name) else dtype)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def row_name(case: str, engine: BuiltEngine) -> str:
    """What a row of the table is called."""
    return f"{case} {engine.bucket} {engine.artifact.key['precision']} {engine.target}"


def row(engine: BuiltEngine) -> dict[str, Any]:
    """What of an engine is compared."""
    facts = engine.facts.to_dict()
    return {name: facts[name] for name in COMPARED}


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    names = [name for name, case in CASES.items() if case.tested] if asked.case is None else asked.case.split(",")
    lines, rows, library = [], {}, ""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="glimt-engines-") as folder:
            began = time.perf_counter()
            made = build(name, asked.target.split(","), Path(folder))
            seconds = time.perf_counter() - began
        print(f"{name}\n{made}\n", file=sys.stderr, flush=True)
        lines += _section(name, made, seconds)
        library = made.engines[0].artifact.key["library"]
        rows |= {row_name(name, engine): row(engine) for engine in made.engines if CASES[name].tested}
    text = "\n".join([f"# TRT engines by {library}, none of them run", "", *lines])
    print(text) if asked.out is None else asked.out.write_text(text + "\n", encoding="utf-8")
    if asked.write:
        TABLE.write_text(json.dumps({"library": library, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


def _section(name: str, made: Build, seconds: float) -> Iterable[str]:
    peak = peak_rss_bytes() / 2**30
    yield f"## {name}"
    yield ""
    yield f"{seconds:.0f} s with export, at most {peak:.1f} GiB of this process's memory so far."
    yield ""
    yield "| size | card | plan MB | of it weights | arena MB | layers | attention | fused | seconds |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for engine in made.engines:
        facts = engine.facts
        megabytes = [(n or 0) / 1e6 for n in (facts.plan_bytes, facts.weights_bytes, facts.activation_bytes)]
        cells = [str(engine.bucket), engine.target, *(f"{value:.1f}" for value in megabytes), str(facts.layers)]
        cells += [str(facts.attentions), str(facts.fused_attentions), f"{facts.seconds:.1f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__.split("\n")[0])
    parser.add_argument("--case", help=f"of {', '.join(CASES)}; default: those that make test builds")
    parser.add_argument("--target", default=",".join(TARGETS), help="cards; default: %(default)s")
    parser.add_argument("--out", type=Path, help="the report; default: printed")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())

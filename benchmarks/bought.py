"""What each means to speed bought: the engine as it is beside the engine with one of them switched off.

    python -m benchmarks.bought [--rounds 5] [--report DIR]

One process. Every round runs one request as it is and then with each means off in turn, in rotating order, so that a
drift of the machine favours none. A means is switched off from here, by putting what it replaced in its place: the
engine has no switches that only a benchmark needs. Where frames are not those of the engine to 60 dB there are no
numbers. The savings do not add up to the whole: means help and hinder one another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks import environment
from benchmarks.cpu import MIN_ROUNDS, MODEL
from benchmarks.harness import ROOT, BenchmarkError, Series, order, ratio
from benchmarks.providers import Glimt
from benchmarks.requests import requests
from benchmarks.rounds import require_agreement
from benchmarks.stopwatch import Stopwatch
from benchmarks.table import listing
from glimt.models.linear import linear as product
from glimt.models.wan import vae_ops
from glimt.models.wan.context import Modulation, TimeContext
from glimt.models.wan.transformer import WanTransformer
from glimt.pipeline.condition import Condition

STAGES = ("denoise", "decode", "whole")
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Means:
    """One means to speed: ``name``; what runs ``instead`` when it is off; ``off``, a context inside which it is."""

    name: str
    instead: str
    off: Callable[[], AbstractContextManager[Any]]


def _reference(*ops: str) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: mock.patch.dict(os.environ, {f"GLIMT_IMPL_{op.upper()}": "reference" for op in ops})


def _by_pytorch() -> AbstractContextManager[Any]:
    return mock.patch.dict(os.environ, {"GLIMT_IMPL_LINEAR": "aten"})


def _in_place(**by_path: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Values for dotted names, which are written with ``__`` for each dot."""

    @contextmanager
    def off() -> Iterator[None]:
        with ExitStack() as stack:
            for path, value in by_path.items():
                stack.enter_context(mock.patch("glimt." + path.replace("__", "."), value))
            yield

    return off


def _gelu_after(x: Any, weight: Any, bias: Any = None, *, gelu: str | None = None, **rest: Any) -> Any:
    out = product(x, weight, bias, **rest)
    return out if gelu is None else F.gelu(out, approximate=gelu)


def _upsample_then_conv(x: Any, weight: Any, bias: Any, folded: Any = None) -> Any:
    doubled = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest-exact")
    return vae_ops.conv3d(doubled, weight[:, :, None], bias, padding=(0, 1, 1))


def _sum_after() -> AbstractContextManager[Any]:
    conv3d = vae_ops.conv3d

    def plain(*args: Any, plus: Any = None, **kwargs: Any) -> Any:
        out = conv3d(*args, **kwargs)
        return out if plus is None else out + plus

    return mock.patch.object(vae_ops, "conv3d", plain)


class _EveryStep:
    """A :class:`TimeContext` that runs the timestep MLP whenever it is asked."""

    def __init__(self, network: WanTransformer, timesteps: Any) -> None:
        self._network, self._timesteps = network, timesteps

    def at(self, index: Any) -> Modulation:
        return Modulation(*self._network.condition_embedder.time(self._timesteps[index]))


@contextmanager
def _at_every_step() -> Iterator[None]:
    with (
        mock.patch.object(WanTransformer, "prepare_text", lambda self, text, image=None: text),
        mock.patch.object(WanTransformer, "prepare_time", lambda self, timesteps: _EveryStep(self, timesteps)),
    ):
        yield


@contextmanager
def _two_rows() -> Iterator[None]:
    model_input, at = Condition.model_input, TimeContext.at
    with (
        mock.patch.object(Condition, "model_input", lambda self, x: _twice(model_input(self, x))),
        mock.patch.object(TimeContext, "at", lambda self, index: at(self, _twice(index))),
    ):
        yield


def _twice(x: Any) -> Any:
    return x.repeat(2, *[1] * (x.ndim - 1))


MEANS = (
    Means("products by oneDNN", "F.linear (MKL), op by op", _by_pytorch),
    Means("GELU in the product's epilogue", "a pass of its own", _in_place(models__linear__linear=_gelu_after)),
    Means("QK norm and RoPE in one pass", "PyTorch, op by op", _reference("qk_norm_rope")),
    Means("norm and modulation in one pass", "PyTorch, op by op", _reference("ada_norm")),
    Means(
        "padding folded into one key",
        "512 text tokens",
        _in_place(pipeline__denoise__fold_padding=lambda texts: texts),
    ),
    Means("text keys and values, timestep MLP once a request", "at every step", _at_every_step),
    Means("guided and unguided rows share the first self-attention", "two rows throughout", _two_rows),
    Means(
        "channels innermost, oneDNN's convolutions, and all below",
        "PyTorch's choice, channels first",
        _in_place(models__wan__vae_ops__runs_onednn=lambda *tensors: False),
    ),
    Means(
        "upsampling folded into its convolution",
        "upsample, then convolve",
        _in_place(models__wan__vae_ops__upsample_conv=_upsample_then_conv),
    ),
    Means("residual sum in the convolution's epilogue", "a pass of its own", _sum_after),
    Means("RMS norm and SiLU in one pass", "PyTorch, op by op", _reference("rms_norm_silu")),
    Means("pixels to bytes in one pass", "PyTorch, op by op", _reference("frames_to_uint8")),
)


def measure(rounds: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each stage, by variant and round. Raises BenchmarkError where frames differ."""
    engine = Glimt()
    engine.load(str(MODEL), threads)
    variants: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
        AS_IT_IS: nullcontext,
        **{means.name: means.off for means in MEANS},
    }
    asked = requests(rounds + 1, height=96, width=96, num_frames=33, num_inference_steps=20, guidance_scale=3.0)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    least_db = 120.0
    for index, request in enumerate([asked[-1], *asked[:-1]]):
        frames = {}
        for name in order(list(variants), index):
            watch = Stopwatch()
            with variants[name](), watch.span("whole"):
                frames[name] = engine.run(request, watch)
            if index:  # the first round warms up
                times[name].append({stage: watch.spans[stage].wall_s for stage in STAGES})
        for name in variants:
            least_db = min(least_db, require_agreement(frames[AS_IT_IS], frames[name], f"without {name}"))
        done = f"round {index} of {rounds}: {times[AS_IT_IS][-1]['whole']:.2f} s as it is" if index else "warmed up"
        say(done)
    return {"times": times, "least_db": least_db, "about": engine.about()}


def table(times: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: what a stage takes without each means, over what it takes as it is (least - most of a round)."""
    lines = ["| switched off | instead | " + " | ".join(STAGES) + " |", "|---|---|" + "---:|" * len(STAGES)]
    base = {stage: Series(tuple(row[stage] for row in times[AS_IT_IS])) for stage in STAGES}
    cells = [f"{base[stage].median:.3f} s" for stage in STAGES]
    lines.append(f"| nothing | | {' | '.join(cells)} |")
    for means in MEANS:
        cells = []
        for stage in STAGES:
            found = ratio(base[stage], Series(tuple(row[stage] for row in times[means.name])))
            cells.append(f"{found.median:.2f}x ({found.low:.2f} - {found.high:.2f})")
        lines.append(f"| {means.name} | {means.instead} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(result: Mapping[str, Any], rounds: int) -> str:
    """The result as Markdown."""
    busy = f"**Busy machine**: {result['busy']}.\n\n" if result["busy"] else ""
    return f"""# What each means to speed bought, on a CPU

    python -m benchmarks.bought --rounds {rounds}

33 frames of 96x96, 20 steps, guidance 3, float32, the bundled model. {result["date"]}.

{busy}{table(result["times"])}

Median of {rounds} rounds (least - most of a round) of the time without a means over the time with all of them, in one
process, in rotating order. Frames agree to {result["least_db"]:.0f} dB or more.

{listing(result["environment"])}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bought", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--report", type=Path, help="folder; default: benchmarks/reports/<date>-<cpu>")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.threads) < 1:
        parser.error("rounds and threads must be 1 or more")
    others = environment.others_now()
    try:
        found = measure(options.rounds, options.threads, say=lambda line: print(line, file=sys.stderr))
    except BenchmarkError as error:
        print(f"no numbers: {error}", file=sys.stderr)
        return 1
    around = {**environment.describe(), "threads": torch.get_num_threads(), "processors used by others before": others}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    result = {"date": now, "environment": around, "busy": environment.busy_warning(others), **found}
    text = report(result, options.rounds)
    print(text)
    folder = options.report or ROOT / "benchmarks/reports" / f"{now[:10]}-{environment.slug(around['cpu'])}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bought.md").write_text(text)
    (folder / "bought.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What a request will do, before it does it: shapes, steps, arithmetic, implementations, memory, time.

A plan is made from a checkpoint's configs, headers and tokenizer; no weight is read and no network is run, but once per
process a few matrix products, to time the machine. Every run follows one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from textwrap import wrap
from typing import Any

from glimt.errors import MemoryBudgetError
from glimt.memory import Budget
from glimt.plan.floor import ForwardPlan
from glimt.plan.previews import PreviewPlan
from glimt.plan.vae import DecodePlan
from glimt.request import ResolvedRequest
from glimt.sampling.guidance import StepGuidance
from glimt.sampling.schedule import Schedule
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid

_GIGABYTE = 1e9


@dataclass(frozen=True)
class StagePlan:
    """One stage, all variants together.

    Attributes:
        name: text, image, preview (a map for previews is fitted, unless it is kept from before), denoise or decode.
        networks: the components it runs. In a staged run no others are in memory, and of two experts one at a time.
        flops: of matrix products and convolutions (``glimt.profile``).
        seconds: estimated.
        peak_bytes: estimated: the weights in memory during the stage and its activations.
    """

    name: str
    networks: tuple[str, ...]
    flops: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class OpChoice:
    """Which implementation of an op runs, and why others do not.

    Attributes:
        op: its name. ``impl``: where its calls run by different ones, all of them, joined by " + ".
        passed_over: those meant for this device and dtype that would go first and cannot run, each with its reasons.
        cases: the devices, chips and dtypes of the calls.
        others: of every implementation why it does not run, at least not all calls.
    """

    op: str
    impl: str
    passed_over: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationPlan:
    """A request made concrete.

    Attributes:
        model, variant: the checkpoint.
        request: with nothing left to defaults.
        clip, latents, tokens: the sizes of one video. ``text_tokens``: the most a prompt may have.
        schedule: sigmas and timesteps. ``guidance``: expert and scale of each step.
        device, dtype, backend, quality: where and how.
        ops: the implementation of each op.
        forward: what one forward of the transformer computes and moves, and its floor on this GPU.
        stages: in order. ``rate_source``: where the estimates of seconds come from.
        weights_bytes: of each component. ``staged``: components are let go of when their stage is over, because
            they do not fit together.
        budget: how much memory there is. ``would_fit``: smaller requests that fit, when this one does not.
            ``least_bytes``: estimated need of the smallest clip.
        decode: chunks and tiles of decoding.
        preview: what previews are; ``None`` where none are asked for.
        known_frames: images stand in for latent frames, with a timestep of their own (Wan 2.2 TI2V).
        notes: what has no effect, how a prompt is cut, and the like.
    """

    model: str
    variant: str
    request: ResolvedRequest
    clip: PixelGrid
    latents: LatentGrid
    tokens: TokenGrid
    text_tokens: int
    schedule: Schedule = field(repr=False)
    guidance: tuple[StepGuidance, ...] = field(repr=False)
    device: str
    dtype: str
    backend: str
    quality: str
    ops: tuple[OpChoice, ...]
    stages: tuple[StagePlan, ...]
    forward: ForwardPlan
    rate_source: str
    weights_bytes: dict[str, int]
    staged: bool
    budget: Budget
    would_fit: tuple[str, ...]
    least_bytes: int
    decode: DecodePlan
    preview: PreviewPlan | None = None
    known_frames: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        return self.schedule.num_inference_steps

    @property
    def forwards(self) -> int:
        """Forwards of a transformer, all variants together."""
        each = sum(1 if step.scale is None else 2 for step in self.guidance)
        return each * self.request.num_videos_per_prompt

    @property
    def seconds(self) -> float:
        """Estimated, without loading."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """Estimated; the most of any stage."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.budget.limit_bytes

    @property
    def implementations(self) -> dict[str, str]:
        return {choice.op: choice.impl for choice in self.ops}

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Implementations that were passed over, each with its reasons."""
        return tuple(line for choice in self.ops for line in choice.passed_over)

    @property
    def decoding(self) -> str:
        """What makes the frames, and how, in words."""
        by = "vae" if self.request.decoder == "vae" else "tiny (class lossy: it changes the picture)"
        return f"{by}, {self.decode}"

    @property
    def exact(self) -> bool:
        """Whether everything runs as PyTorch's own operations in their plain form, nothing fused or reordered."""
        return self.quality == "exact"

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)

    def require_fit(self) -> None:
        """Raise MemoryBudgetError, with what would fit, unless this fits."""
        if self.fits:
            return
        worst = max(self.stages, key=lambda stage: stage.peak_bytes)
        asked = (
            f"{self.clip} with {self.model} needs about {_size(worst.peak_bytes)} ({worst.name}); "
            f"the budget is {_size(self.budget.limit_bytes)} ({self.budget.source})"
        )
        raise MemoryBudgetError(f"{asked}. {self._advice()}")

    def _advice(self) -> str:
        if self.would_fit:
            return f"These would fit: {'; '.join(self.would_fit)}."
        megabytes = -(-self.least_bytes // 1_000_000)
        return f"No size fits: the smallest clip needs {megabytes} MB; raise the budget to that at least."

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what :func:`str` shows and the whole schedule."""
        return {
            "model": self.model,
            "variant": self.variant,
            "request": self.request.to_dict(),
            "pixels": [3, self.clip.frames, self.clip.height, self.clip.width],
            "latents": list(self.latents.shape(1)[1:]),
            "tokens": [self.tokens.t, self.tokens.y, self.tokens.x],
            "num_tokens": self.tokens.count,
            "text_tokens": self.text_tokens,
            "solver": self.schedule.solver,
            "sigmas": list(self.schedule.sigmas),
            "timesteps": list(self.schedule.timesteps),
            "guidance": [step.scale for step in self.guidance],
            "experts": [step.expert for step in self.guidance],
            "forwards": self.forwards,
            "seeds": list(self.request.seeds),
            "device": self.device,
            "dtype": self.dtype,
            "backend": self.backend,
            "quality": self.quality,
            "implementations": self.implementations,
            "fallbacks": list(self.fallbacks),
            "ops": [asdict(choice) for choice in self.ops],
            "stages": {stage.name: asdict(stage) for stage in self.stages},
            "forward": asdict(self.forward),
            "seconds": self.seconds,
            "seconds_source": self.rate_source,
            "peak_bytes": self.peak_bytes,
            "weights_bytes": dict(self.weights_bytes),
            "staged": self.staged,
            "budget_bytes": self.budget.limit_bytes,
            "budget_source": self.budget.source,
            "fits": self.fits,
            "would_fit": list(self.would_fit),
            "least_bytes": self.least_bytes,
            "decoder": self.request.decoder,
            "decode": self.decode.to_dict(),
            "preview": None if self.preview is None else asdict(self.preview),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join([*_lines(self), "", *_stage_table(self), "", *_forward(self), "", *_verdict(self)])


def _lines(plan: GenerationPlan) -> list[str]:
    asked, tokens = plan.request, plan.tokens
    seeds = f"seed {asked.seed}" if len(asked.seeds) == 1 else f"seeds {asked.seeds[0]} to {asked.seeds[-1]}"
    rows = [
        ("model", f"{plan.model} ({plan.variant})"),
        ("clip", f"{plan.clip} at {asked.fps:g} fps, {seeds}"),
        ("latents", f"{list(plan.latents.shape(1))} float32"),
        ("tokens", f"{tokens.t} x {tokens.y} x {tokens.x} = {tokens.count}; text at most {plan.text_tokens}"),
        ("steps", _steps(plan)),
        ("guidance", _guidance(plan)),
        ("runs as", f"{plan.dtype} on {plan.device}, backend {plan.backend}, quality {plan.quality}"),
        *([("preview", str(plan.preview))] if plan.preview is not None else []),
        ("decoding", plan.decoding),
        *zip(chain(["ops"], repeat("")), wrap(", ".join(f"{op.op} {op.impl}" for op in plan.ops), 110), strict=False),
    ]
    return [f"{name:<10}{text}" for name, text in rows]


def _steps(plan: GenerationPlan) -> str:
    sigmas, shift = plan.schedule.sigmas, plan.schedule.shift
    shifted = "" if shift is None else f", shift {shift:g}"
    return f"{plan.num_steps} of {plan.schedule.solver}{shifted}, sigma {sigmas[0]:.3f} to {sigmas[-1]:g}"


def _guidance(plan: GenerationPlan) -> str:
    scales = [step.scale for step in plan.guidance]
    parts = []
    for expert in sorted({step.expert for step in plan.guidance}):
        mine = [scale for scale, step in zip(scales, plan.guidance, strict=True) if step.expert == expert]
        where = f"expert {expert + 1}, {len(mine)} steps: " if plan.request.guidance_scale_2 is not None else ""
        parts.append(where + ("off" if mine[0] is None else f"{mine[0]:g}"))
    return f"{'; '.join(parts)} ({plan.forwards} forwards)"


def _stage_table(plan: GenerationPlan) -> list[str]:
    rows = [f"{'stage':<10}{'TFLOP':>10}{'seconds':>10}{'peak memory':>14}"]
    rows += [
        f"{stage.name:<10}{stage.flops / 1e12:>10.3f}{stage.seconds:>10.2f}{_size(stage.peak_bytes):>14}"
        for stage in plan.stages
    ]
    total = sum(stage.flops for stage in plan.stages)
    return [*rows, f"{'whole':<10}{total / 1e12:>10.3f}{plan.seconds:>10.2f}{_size(plan.peak_bytes):>14}"]


def _forward(plan: GenerationPlan) -> list[str]:
    forward, moved = plan.forward, plan.forward.bytes
    flops = forward.matrix_flops + forward.attention_flops
    work = (
        f"{flops / 1e12:.3f} TFLOP (products {forward.matrix_flops / 1e12:.3f}, attention "
        f"{forward.attention_flops / 1e12:.3f}); moves {_size(moved.total)} by fused kernels (products "
        f"{_size(moved.matrix)}, attention {_size(moved.attention)}, the rest {_size(moved.other)})"
    )
    floor = forward.floor_source
    if forward.floor_s is not None:
        all_s = forward.floor_s * plan.forwards
        floor = f"{forward.floor_s:.3f} s, {all_s:.2f} s for {plan.forwards}: {floor}"
    return [f"{'forward':<10}{work}", f"{'floor':<10}{floor}"]


def _verdict(plan: GenerationPlan) -> list[str]:
    weights = ", ".join(f"{name} {_size(size)}" for name, size in plan.weights_bytes.items())
    kept = "; each let go of after its stage" if plan.staged else ""
    rows = [f"{'weights':<10}{weights}{kept}"]
    verdict = "fits" if plan.fits else f"does not fit. {plan._advice()}"
    rows.append(f"{'memory':<10}{_size(plan.budget.limit_bytes)} ({plan.budget.source}): {verdict}")
    rows.append(f"{'seconds':<10}{plan.rate_source}; a run's report says what it really took")
    return rows + [f"{'note':<10}{note}" for note in plan.notes]


def _size(count: int) -> str:
    return f"{count / _GIGABYTE:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

"""From noise to finished latents: a generator of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from glimt.models.wan.context import TextContext, TimeContext, fold_padding
from glimt.models.wan.rope import RopeTables, rope_tables
from glimt.models.wan.transformer import WanTransformer
from glimt.pipeline.condition import Condition
from glimt.pipeline.events import Frames, StepState
from glimt.pipeline.guard import check_latents, first_nonfinite
from glimt.plan import EXPERTS, GenerationPlan
from glimt.sampling.guidance import StepGuidance, guide
from glimt.sampling.noise import initial_latents
from glimt.sampling.solvers import make_solver


class Transformers(Protocol):
    """Where a run finds the transformer of an expert, 0 or 1; loading it may take a while."""

    def transformer(self, expert: int) -> WanTransformer: ...

    def release(self, *names: str) -> None:
        """These components are not needed for a while."""


@dataclass(frozen=True)
class Prompts:
    """What was said, as the text encoder gives it.

    Attributes:
        texts: [1 or 2, L, text_dim] zero-padded: the prompt, and the negative prompt where guidance is on.
        image: CLIP tokens [1, Li, image_dim] (two rows for first and last image), or ``None``.
    """

    texts: Tensor
    image: Tensor | None = None


@dataclass(frozen=True)
class _Prepared:
    """What one transformer computes once and uses at every step."""

    network: WanTransformer
    text: TextContext
    time: TimeContext
    rope: RopeTables


class Velocity:
    """The guided velocity of one request: the network, what it computes once, and the condition. Not shared."""

    def __init__(self, models: Transformers, plan: GenerationPlan, prompts: Prompts, condition: Condition) -> None:
        self._models, self._plan, self._prompts, self._condition = models, plan, prompts, condition
        self._ready: dict[tuple[int, bool], _Prepared] = {}  # by expert, and whether both prompts are in its text

    @torch.inference_mode()
    def __call__(self, x: Tensor, step: int, guidance: StepGuidance) -> Tensor:
        """Velocity [1, C, f, h, w] at latents ``x`` of the same shape, at one step of the schedule."""
        ready = self._prepare(guidance)
        index = self._condition.time_index(step, self._plan.num_steps, self._plan.latents.frames)
        modulation = ready.time.at(index.to(x.device))
        out = ready.network(self._condition.model_input(x), modulation, ready.text, rope=ready.rope)
        return out if guidance.scale is None else guide(out[:1], out[1:], guidance.scale)

    def diagnose(self, x: Tensor, step: int, guidance: StepGuidance) -> str:
        """Name the operation that first goes wrong at this step, what is computed once per request included."""
        network = self._prepare(guidance).network
        self.forget()
        return first_nonfinite(network, partial(self, x, step, guidance))

    def forget(self) -> None:
        """Let go of the networks; the next call prepares again."""
        self._ready.clear()

    def _prepare(self, guidance: StepGuidance) -> _Prepared:
        guided = guidance.scale is not None
        key = guidance.expert, guided
        if key not in self._ready:
            if self._plan.staged:  # there is room for the weights of one expert
                self.forget()
                self._models.release(EXPERTS[1 - guidance.expert])
            self._ready[key] = self._prepared(self._models.transformer(guidance.expert), guided)
        return self._ready[key]

    def _prepared(self, network: WanTransformer, guided: bool) -> _Prepared:
        device = network.proj_out.weight.device
        rows = 2 if guided else 1
        image = self._prompts.image
        if image is not None:
            image = image.to(device).repeat(rows, 1, 1)
        texts = self._prompts.texts[:rows].to(device)
        grid, timesteps = self._plan.tokens, [*self._plan.schedule.timesteps, 0.0]
        return _Prepared(
            network,
            network.prepare_text(texts if self._plan.exact else fold_padding(texts), image),
            network.prepare_time(torch.tensor(timesteps, device=device)),
            rope_tables(network.config.attention_head_dim, (grid.t, grid.y, grid.x)).to(device),
        )


def denoise(
    velocity: Velocity, plan: GenerationPlan, condition: Condition, variant: int, preview: Callable[[Tensor], Frames]
) -> Generator[StepState, None, Tensor]:
    """Denoise one variant; yields after every step, returns the finished latents [1, C, f, h, w] float32, normalized.

    Latents are float32 between steps. The first two steps and the last are checked (which waits for the device); the
    others are not. Closing the generator cancels.

    Args:
        preview: makes one of the latents, called only by a consumer who asks.

    Raises:
        NonFiniteError: NaN, infinity or flat latents.
    """
    seed = plan.request.seeds[variant]
    solver = make_solver(plan.schedule, seed)
    with torch.inference_mode():
        x = solver.start(initial_latents(plan.latents.shape(1), seed).to(plan.device))
    began = time.perf_counter()
    for i, guidance in enumerate(plan.guidance):
        before = x
        x, x0 = _advance(solver.step, velocity(x, i, guidance), i, x)
        if i < 2 or i == plan.num_steps - 1:
            check_latents(x0, i + 1, plan.num_steps, partial(velocity.diagnose, before, i, guidance))
        del before
        yield _state(plan, i, condition.impose(x0), variant, time.perf_counter() - began, preview)
        del x0
    return condition.impose(x)


@torch.inference_mode()
def _advance(
    step: Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]], velocity: Tensor, i: int, x: Tensor
) -> tuple[Tensor, Tensor]:
    return step(velocity, i, x)


def _state(
    plan: GenerationPlan, i: int, x0: Tensor, variant: int, elapsed_s: float, preview: Callable[[Tensor], Frames]
) -> StepState:
    every = plan.request.preview_every
    wanted = every > 0 and (i + 1) % every == 0
    return StepState(
        step=i + 1,
        num_steps=plan.num_steps,
        sigma=plan.schedule.sigmas[i],
        timestep=plan.schedule.timesteps[i],
        expert=plan.guidance[i].expert,
        elapsed_ms=elapsed_s * 1000,
        eta_s=elapsed_s / (i + 1) * (plan.num_steps - i - 1),
        x0=x0,
        variant=variant,
        _preview=preview if wanted else None,
    )

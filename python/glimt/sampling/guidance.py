"""Classifier-free guidance, and which expert and which scale each step uses.

Rules of Diffusers' ``WanPipeline`` and ``WanImageToVideoPipeline``:

- a run is guided if ``guidance_scale > 1``; otherwise the network never sees the negative prompt;
- with two experts (Wan 2.2 A14B) the first one and ``guidance_scale`` serve the steps with
  ``timestep >= boundary_ratio * num_train_timesteps``, the second one and ``guidance_scale_2`` the rest;
- ``guidance_scale_2`` defaults to ``guidance_scale`` and is an error for a model with one expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from glimt.errors import RequestError
from glimt.sampling.schedule import Schedule


@dataclass(frozen=True)
class StepGuidance:
    """``expert``: 0 (high noise, or the only one) or 1. ``scale``: None where the unconditional forward is skipped."""

    expert: int
    scale: float | None


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """``uncond + scale (cond - uncond)``: the velocities for the prompt and for the negative prompt combined.

    Any shape (the same), any floating dtype; float32 out. On float32 input these are the Wan pipelines' bits; on
    bfloat16 Diffusers rounds each operation to bfloat16, which this does not.
    """
    uncond = uncond.float()
    return uncond + scale * (cond.float() - uncond)


def plan_guidance(
    schedule: Schedule,
    guidance_scale: float,
    guidance_scale_2: float | None = None,
    boundary_ratio: float | None = None,
) -> tuple[StepGuidance, ...]:
    """Expert and scale of every step of the schedule (rules in the module's text).

    A step of a guided run whose own scale is exactly 1 has no unconditional forward either: guidance by 1 is the
    conditional answer. Raises RequestError with every problem; among them a ``guidance_scale_2 > 1`` beside a
    ``guidance_scale <= 1``, which Diffusers silently ignores.
    """
    problems = _problems(guidance_scale, guidance_scale_2, boundary_ratio)
    if problems:
        raise RequestError(*problems)
    second = guidance_scale if guidance_scale_2 is None else guidance_scale_2
    boundary = -math.inf if boundary_ratio is None else boundary_ratio * schedule.num_train_timesteps
    guided = guidance_scale > 1.0
    steps = []
    for timestep in schedule.timesteps:
        expert, scale = (0, guidance_scale) if timestep >= boundary else (1, second)
        steps.append(StepGuidance(expert, scale if guided and scale != 1.0 else None))
    return tuple(steps)


def _problems(scale: float, scale_2: float | None, boundary_ratio: float | None) -> list[str]:
    problems = [
        f"{name}: {value!r} is not a finite number of at least 0"
        for name, value in (("guidance_scale", scale), ("guidance_scale_2", scale_2))
        if value is not None and not (math.isfinite(value) and value >= 0)
    ]
    if scale_2 is not None and boundary_ratio is None:
        problems.append(f"guidance_scale_2: {scale_2!r} is for models with two experts; this one has one: leave it out")
    elif scale_2 is not None and scale <= 1.0 < scale_2:
        problems.append(
            f"guidance_scale_2: {scale_2!r} has no effect, for guidance_scale {scale!r} turns guidance off altogether; "
            "leave it out, or set guidance_scale above 1"
        )
    return problems

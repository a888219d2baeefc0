"""Guidance: the arithmetic and the rules of Diffusers' Wan pipelines."""

from __future__ import annotations

import math

import pytest
import torch

from glimt.errors import RequestError
from glimt.sampling import build, guide, plan_guidance

SCHEDULE = build("unipc", 40, 12.0)


def test_guide_has_the_bits_of_the_wan_pipelines() -> None:
    cond, uncond = torch.randn(2, 1, 4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(cond, uncond, 5.0), uncond + 5.0 * (cond - uncond))
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)


def test_guide_widens_before_it_subtracts() -> None:
    """-(1 + 2^-7) - 1 needs a bit more than bfloat16 has (8), so bfloat16 arithmetic would be wrong by 2^-9."""
    cond, uncond = torch.tensor([-(1 + 2**-7)]).bfloat16(), torch.tensor([1.0]).bfloat16()
    guided = guide(cond, uncond, 3.1)
    assert guided.dtype == torch.float32
    assert guided.item() == pytest.approx(1 - 3.1 * (2 + 2**-7), rel=1e-6)


def test_one_expert_has_one_scale_throughout() -> None:
    plan = plan_guidance(SCHEDULE, 5.0)
    assert [(step.expert, step.scale) for step in plan] == [(0, 5.0)] * 40


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guidance_is_skipped_at_one_and_below(scale: float) -> None:
    assert all(step.scale is None for step in plan_guidance(SCHEDULE, scale))
    assert all(step.scale is None for step in plan_guidance(SCHEDULE, scale, boundary_ratio=0.875))


def test_two_experts_meet_at_the_boundary_timestep() -> None:
    plan = plan_guidance(SCHEDULE, 4.0, 3.0, boundary_ratio=0.875)
    for timestep, step in zip(SCHEDULE.timesteps, plan, strict=True):
        assert (step.expert, step.scale) == ((0, 4.0) if timestep >= 875 else (1, 3.0))
    assert {step.expert for step in plan} == {0, 1}
    at_the_boundary = plan_guidance(SCHEDULE, 4.0, 3.0, boundary_ratio=SCHEDULE.timesteps[7] / 1000)
    assert [step.expert for step in at_the_boundary] == [0] * 8 + [1] * 32


def test_the_second_scale_defaults_to_the_first() -> None:
    assert {step.scale for step in plan_guidance(SCHEDULE, 4.0, boundary_ratio=0.9)} == {4.0}


def test_a_second_scale_of_one_skips_its_steps_only() -> None:
    plan = plan_guidance(SCHEDULE, 4.0, 1.0, boundary_ratio=0.9)
    assert all(step.scale == (4.0 if step.expert == 0 else None) for step in plan)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        plan_guidance(SCHEDULE, math.nan, -1.0)
    assert caught.value.fields == ("guidance_scale", "guidance_scale_2")
    assert len(caught.value.problems) == 3
    with pytest.raises(RequestError, match="no effect"):
        plan_guidance(SCHEDULE, 1.0, 3.0, boundary_ratio=0.9)

"""Sampling: schedules (data), solvers (update rules), noise from a seed, guidance. Knows nothing of models."""

from glimt.sampling.guidance import StepGuidance, guide, plan_guidance
from glimt.sampling.noise import initial_latents, renoise
from glimt.sampling.schedule import Schedule, ScheduleSpec, UniPCOptions, build, from_scheduler_config
from glimt.sampling.solvers import Solver, make_solver

__all__ = [
    "Schedule",
    "ScheduleSpec",
    "Solver",
    "StepGuidance",
    "UniPCOptions",
    "build",
    "from_scheduler_config",
    "guide",
    "initial_latents",
    "make_solver",
    "plan_guidance",
    "renoise",
]

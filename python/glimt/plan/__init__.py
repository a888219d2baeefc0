"""Plans: what a request will do, before it does it (``value``), and how that is found out (``planner``)."""

from glimt.plan.floor import ForwardPlan
from glimt.plan.planner import EXPERTS, Planner
from glimt.plan.value import GenerationPlan, OpChoice, StagePlan

__all__ = ["EXPERTS", "ForwardPlan", "GenerationPlan", "OpChoice", "Planner", "StagePlan"]

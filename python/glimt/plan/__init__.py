"""Plans: what a request will do, before it does it (``value``), and how that is found out (``planner``)."""

from glimt.plan.floor import ForwardPlan
from glimt.plan.planner import EXPERTS, Planner
from glimt.plan.vae import DecodePlan
from glimt.plan.value import GenerationPlan, OpChoice, StagePlan

__all__ = ["EXPERTS", "DecodePlan", "ForwardPlan", "GenerationPlan", "OpChoice", "Planner", "StagePlan"]

"""Which implementation runs each op of a request, and what stands before it that cannot. Runs none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from glimt.plan.value import OpChoice

if TYPE_CHECKING:
    from glimt_kernels import Case


def vae_ops(device: str, dtype: str) -> set[str]:
    """The ops that the autoencoder calls and no other network does."""
    import torch

    from glimt.models.wan import transformer
    from glimt.models.wan.vae_ops import kernels_used
    from glimt_kernels import Case

    case = Case(device.partition(":")[0], getattr(torch, dtype))
    return set(kernels_used(case)) - set(transformer.kernels_used())


def all_choices(case: Case) -> tuple[OpChoice, ...]:
    """What runs each op that the networks call for ``case``, as they say themselves."""
    import torch

    from glimt.models.wan import transformer
    from glimt.models.wan.vae_ops import kernels_used
    from glimt_kernels import wants_references
    from glimt_kernels.linear import onednn

    name, reasons = onednn.library(case)
    passed_over = tuple(f"convolution: onednn cannot run here: {reason}" for reason in reasons)
    linear = OpChoice("linear", "aten") if wants_references() else _choice("linear", _linear_cases(case))
    choices = [linear, OpChoice("convolution", name, passed_over)]
    wanted = dict.fromkeys((*transformer.kernels_used(), *kernels_used(case)), case)
    wanted["frames_to_uint8"] = case._replace(dtype=torch.float32)  # pixels are float32 whatever made them
    for op, its_case in wanted.items():
        choice = _choice(op, [its_case])
        choices.append(replace(choice, passed_over=()) if wants_references() else choice)
    return tuple(choices)


def _linear_cases(case: Case) -> list[Case]:
    """A product alone, and one that adds a gated residual: on a GPU one may run by a library and the other not."""
    from glimt_kernels.linear.call import DTYPES, Call

    plain = Call(dtype=DTYPES.index(case.dtype)) if case.dtype in DTYPES else Call()
    return [case._replace(sizes=call) for call in (plain, plain._replace(gate=1, residual=1))]


def _choice(op: str, cases: Sequence[Case]) -> OpChoice:
    """What is chosen for calls of an op, joined where it is not the same, and what stands before it that cannot run.

    An implementation for another kind of device or dtype is not passed over: it was never meant for this one; nor is
    one that lets a better one go first.
    """
    from glimt_kernels.dispatch import candidates, select, unsupported_reasons

    impls: dict[str, None] = {}
    passed: dict[str, None] = {}
    for case in cases:
        chosen = select(op, case)
        impls[chosen.impl] = None
        for candidate in candidates(op)[: candidates(op).index(chosen)]:
            why = unsupported_reasons(candidate, case)
            if why and candidate.impl in _meant_for(case):
                passed[f"{op}: {candidate.impl} cannot run here: {'; '.join(why)}"] = None
    return OpChoice(op, " + ".join(impls), tuple(passed))


def _meant_for(case: Case) -> tuple[str, ...]:
    """Implementations that are made for such a device and dtype."""
    import torch

    if case.device != "cpu":
        return ("cuda", "triton")
    return ("native", "onednn") if case.dtype == torch.float32 else ()

"""One op on one shape: its inputs, who can run it, what is right, and what it costs at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glimt_kernels import dispatch

Run = Callable[..., Any]
Args = tuple[Any, ...]
SAMPLED = 64


@dataclass(frozen=True)
class Workload:
    """One op on one shape.

    Attributes:
        op: name in ``glimt_kernels.dispatch``, or of a function made of several such ops, which then names its own
            ``runs``. ``shape``: name in ``glimt_kernels.bench.shapes``.
        args: of the op, in schema order.
        eager: what plain PyTorch runs in this place, in the working dtype: the baseline.
        flops, num_bytes: what any implementation must compute, and move to and from memory.
        exact: the result in float64; for large inputs of a part, which ``part`` cuts from a result.
        part: from the tensors of a result those that ``exact`` gives: sampled rows, or values from levels and scales.
        kind: "matrix" (beside the GEMM rate) or "element-wise" (beside the copy rate).
        honest: the op itself by plain PyTorch, whose error is the measure; ``eager`` where that is the op.
        runs: implementations by name, where ``dispatch`` knows no such op.
    """

    op: str
    shape: str
    args: Sequence[Any]
    eager: Run
    flops: float
    num_bytes: float
    exact: Callable[[], Sequence[Tensor]]
    part: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple
    kind: str = "element-wise"
    honest: Run | None = None
    runs: Mapping[str, Run] = field(default_factory=dict)


def providers(
    workload: Workload, asked: Sequence[str], extra: Mapping[str, Run]
) -> tuple[dict[str, Run], dict[str, str]]:
    """(callables by name, reasons of those that cannot run): eager, compile, every implementation, and ``extra``.

    Args:
        asked: names; empty for all but ``reference``, whose speed is nobody's concern. A name that there is not gets
            that as its reason.
        extra: of third parties, called with the workload's arguments.
    """
    found: dict[str, Run] = {"eager": workload.eager, "compile": torch.compile(workload.eager, dynamic=False)}
    reasons = {}
    for candidate in candidates(workload):
        wrong = unsupported(workload, candidate)
        if wrong:
            reasons[candidate.impl] = "; ".join(wrong)
        else:
            found[candidate.impl] = candidate.run
    found |= {**workload.runs, **extra}
    known = ", ".join(sorted({*found, *reasons}))
    reasons |= {name: f"no such provider; there are {known}" for name in asked if name not in {*found, *reasons}}
    names = asked or [name for name in found if name != "reference"]
    return {name: found[name] for name in names if name in found}, {
        name: reason for name, reason in reasons.items() if not asked or name in asked
    }


def candidates(workload: Workload) -> tuple[dispatch.Candidate, ...]:
    """Of the workload's op; none where it is made of several."""
    return () if workload.runs else dispatch.candidates(workload.op)


def unsupported(workload: Workload, candidate: dispatch.Candidate) -> list[str]:
    """Why ``candidate`` is no provider here. An interpreted kernel has no speed."""
    case = dispatch.find(workload.op).case(workload.args)
    reasons = list(dispatch.unsupported_reasons(candidate, case))
    if candidate.impl == "triton" and case.device == "cpu" and not reasons:
        reasons.append("it would be interpreted, which is for tests")
    return reasons


def lossy(workload: Workload) -> set[str]:
    """Implementations that say themselves that they are: they are timed, with their error beside it."""
    case = dispatch.find(workload.op).case(workload.args) if not workload.runs else None
    return {
        candidate.impl
        for candidate in candidates(workload)
        if case is not None and any("lossy" in reason for reason in candidate.reluctance(case))
    }


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for tensor in result if isinstance(tensor, Tensor)]


def sample(rows: int, device: torch.device) -> Tensor:
    """Indices of at most ``SAMPLED`` rows out of ``rows``: the first, the last, and some between, evenly spaced."""
    return torch.linspace(0, rows - 1, min(rows, SAMPLED), dtype=torch.float64, device=device).round().long()


@dataclass(frozen=True)
class Error:
    """How wrong a result is: relative L2, the largest single error over the largest value, and the cosine."""

    relative_l2: float
    relative_max: float
    cosine: float


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> Error:
    """Of all outputs together, each scaled by its own size; NaN where a result is NaN."""
    errors = [_error(mine, right) for mine, right in zip(found, exact, strict=True)]
    worst = [torch.tensor([getattr(one, name) for one in errors]) for name in ("relative_l2", "relative_max", "cosine")]
    return Error(worst[0].max().item(), worst[1].max().item(), worst[2].min().item())


def _error(mine: Tensor, right: Tensor) -> Error:
    if mine.shape != right.shape:
        raise ValueError(f"a result of shape {list(mine.shape)}, expected {list(right.shape)}")
    wide, right = mine.double().flatten(), right.double().flatten()
    difference, size = wide - right, right.norm().clamp_min(1e-300)
    return Error(
        (difference.norm() / size).item(),
        (difference.abs().max() / right.abs().max().clamp_min(1e-300)).item(),
        (wide @ right / (wide.norm() * size).clamp_min(1e-300)).item(),
    )

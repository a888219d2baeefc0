"""One op on one shape: its inputs, who can run it, what is right, and what it costs at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glimt_kernels import dispatch

Run = Callable[..., Any]


@dataclass(frozen=True)
class Workload:
    """One op on one shape.

    Attributes:
        op: name in ``glimt_kernels``. ``shape``: name in ``benchmarks.shapes``.
        args: of the op, in schema order.
        eager: the same by plain PyTorch in the working dtype: the baseline, and the measure of an honest error.
        flops, num_bytes: what any implementation must compute, and move to and from memory.
        exact: the result in float64; for large inputs of a part, which ``part`` cuts from a result.
        kind: "matrix" (beside the GEMM rate) or "element-wise" (beside the copy rate).
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
    sizes: Mapping[str, int] = field(default_factory=dict)


def providers(
    workload: Workload, asked: Sequence[str], extra: Mapping[str, Run]
) -> tuple[dict[str, Run], dict[str, str]]:
    """(callables by name, reasons of those that cannot run): eager, compile, every implementation, and ``extra``.

    Args:
        asked: names; empty for all but ``reference``, whose speed is nobody's concern.
        extra: of a provider file, called with the workload's arguments.
    """
    found: dict[str, Run] = {"eager": workload.eager, "compile": torch.compile(workload.eager, dynamic=False)}
    reasons = {}
    op = dispatch.find(workload.op)
    for candidate in op.candidates:
        wrong = dispatch.unsupported_reasons(candidate, op.case(workload.args))
        if wrong:
            reasons[candidate.impl] = "; ".join(wrong)
        else:
            found[candidate.impl] = candidate.run
    found |= extra
    unknown = [name for name in asked if name not in found and name not in reasons]
    if unknown:
        raise ValueError(f"{workload.op}: no provider {', '.join(unknown)}; there are {', '.join(found)}")
    names = asked or [name for name in found if name != "reference"]
    return {name: found[name] for name in names if name in found}, reasons


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for tensor in result if isinstance(tensor, Tensor)]


@dataclass(frozen=True)
class Error:
    """How wrong a result is: relative L2, the largest single error over the largest value, and the cosine."""

    relative_l2: float
    relative_max: float
    cosine: float


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> Error:
    """Of all outputs together, each scaled by its own size."""
    l2, largest, cosine = 0.0, 0.0, 1.0
    for mine, right in zip(found, exact, strict=True):
        if mine.shape != right.shape:
            raise ValueError(f"a result of shape {list(mine.shape)}, expected {list(right.shape)}")
        wide, right = mine.double().flatten(), right.double().flatten()
        difference, size = wide - right, right.norm().clamp_min(1e-300)
        l2 = max(l2, (difference.norm() / size).item())
        largest = max(largest, (difference.abs().max() / right.abs().max().clamp_min(1e-300)).item())
        cosine = min(cosine, (wide @ right / (wide.norm() * size).clamp_min(1e-300)).item())
    return Error(l2, largest, cosine)

"""What the kernels are meant to reach on an H200, and what a run says of it: met, missed, or unmeasured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]
SHAPE = "wan-1.3b-480p"  # N = 32,760, head_dim 128


@dataclass(frozen=True)
class Goal:
    """``measure`` gives a number that should be at least ``target`` (at most, for times), or None without rows."""

    name: str
    target: float
    measure: Callable[[Rows], float | None]
    at_most: bool = False
    unit: str = "x"


def _row(rows: Rows, op: str, provider: str, shape: str = SHAPE) -> Mapping[str, Any] | None:
    wanted = (op, provider, shape, "bf16")
    for row in rows:
        if (row["op"], row["provider"], row["shape"], row["dtype"]) == wanted and "median_ms" in row:
            return row
    return None


def share(op: str, provider: str = "triton") -> Callable[[Rows], float | None]:
    """Of the measured rate."""

    def measure(rows: Rows) -> float | None:
        row = _row(rows, op, provider)
        return None if row is None else float(row["share"])

    return measure


def times(
    op: str, base: tuple[str, str], provider: str = "triton", key: str = "median_ms"
) -> Callable[[Rows], float | None]:
    """How many times as fast as ``base`` (op, provider); with ``key`` "tflops", as much per second."""

    def measure(rows: Rows) -> float | None:
        mine, other = _row(rows, op, provider), _row(rows, *base)
        if mine is None or other is None:
            return None
        ratio = float(other[key]) / float(mine[key])
        return ratio if key == "median_ms" else 1 / ratio

    return measure


def least(figure: Callable[[Rows, str], float | None]) -> Callable[[Rows], float | None]:
    """The smallest of a figure over the element-wise ops that were measured."""

    def measure(rows: Rows) -> float | None:
        ops = {str(row["op"]) for row in rows if row.get("kind") == "element-wise" and row["shape"] == SHAPE}
        found = [value for op in ops if (value := figure(rows, op)) is not None]
        return min(found, default=None)

    return measure


GOALS = (
    Goal("bf16 attention, Triton, of the measured GEMM rate", 0.65, share("attention"), unit=""),
    Goal("the same by Gluon or CUDA (final)", 0.80, share("attention", "cuda"), unit=""),
    Goal("bf16 attention against PyTorch's default", 1.6, times("attention", ("attention", "eager"))),
    Goal(
        "8-bit attention with quantization against bf16",
        1.35,
        times("attention", ("attention", "triton"), provider="eight_bit"),
    ),
    Goal(
        "block-sparse attention, TFLOP/s of what is kept against dense",
        0.85,
        times("sparse_attention", ("attention", "triton"), key="tflops"),
        unit="",
    ),
    Goal(
        "element-wise, the slowest, of the copy rate",
        0.85,
        least(lambda rows, op: share(op)(rows)),
        unit="",
    ),
    Goal("element-wise, the least gain, against eager", 8.0, least(lambda rows, op: times(op, (op, "eager"))(rows))),
    Goal(
        "FP8 linear with quantization against cuBLAS bf16",
        1.6,
        times("linear_quant/fp8", ("linear_quant/fp8", "eager")),
    ),
    Goal("causal convolution of 96 channels, of the measured GEMM rate", 0.60, share("causal_conv3d"), unit=""),
    Goal("the same of 192 channels", 0.70, share("causal_conv3d/half"), unit=""),
    Goal("the same of 384 channels", 0.75, share("causal_conv3d/quarter"), unit=""),
    Goal("the same of 96 channels against cuDNN", 1.3, times("causal_conv3d", ("causal_conv3d", "eager"))),
)


def table(rows: Rows, goals: Sequence[Goal] = GOALS) -> str:
    """Markdown. Rows of a CPU say nothing of goals for a GPU."""
    lines = ["| goal (for an H200) | target | measured | |", "|---|---:|---:|---|"]
    for goal in goals:
        value = goal.measure([row for row in rows if row.get("on_gpu")])
        sign = "<=" if goal.at_most else ">="
        if value is None:
            shown, verdict = "", "*unmeasured*"
        else:
            met = value <= goal.target if goal.at_most else value >= goal.target
            shown, verdict = f"{value:.2f}{_unit(goal)}", "met" if met else "**missed**"
        lines.append(f"| {goal.name} | {sign} {goal.target:.2f}{_unit(goal)} | {shown} | {verdict} |")
    return "\n".join(lines)


def _unit(goal: Goal) -> str:
    return goal.unit if goal.unit in ("", "x") else f" {goal.unit}"

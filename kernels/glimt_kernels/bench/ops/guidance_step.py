"""guidance_step: guidance and a step of UniPC on the whole latents: two outputs from two tensors of history."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

CHANNELS = 16


def eager(
    latents: Tensor, cond: Tensor, uncond: Tensor, guidance: Tensor, coefficients: Tensor, history: Sequence[Tensor]
) -> list[Tensor]:
    """Term by term, in float32 from the velocities on, as solvers are written."""
    terms = [latents, uncond.float() + guidance * (cond.float() - uncond.float()), *history]
    outputs = []
    for row in coefficients.unbind():
        total = row[0] * terms[0]
        for coefficient, term in zip(row[1:], terms[1:], strict=True):
            total = total + coefficient * term
        outputs.append(total)
    return outputs


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    frames, y, x = shape.grid
    size = (1, CHANNELS, frames, 2 * y, 2 * x)
    latents, *history = (torch.randn(size, device=device) for _ in range(3))
    cond, uncond = (torch.randn(size, device=device).to(dtype) for _ in range(2))
    guidance = torch.tensor(5.0, device=device)
    coefficients = torch.randn(2, 4, device=device)

    def exact() -> list[Tensor]:
        wide = [tensor.double() for tensor in (cond, uncond, guidance)]
        velocity = wide[1] + wide[2] * (wide[0] - wide[1])
        terms = torch.stack([tensor.double() for tensor in (latents, velocity, *history)])
        return list(torch.tensordot(coefficients.double(), terms, 1))

    outputs, terms = coefficients.shape
    return Workload(
        op="guidance_step",
        shape=name,
        args=(latents, cond, uncond, guidance, coefficients, history),
        eager=eager,
        flops=(3 + 2 * outputs * terms) * latents.numel(),
        num_bytes=(1 + len(history) + outputs) * latents.nbytes + cond.nbytes + uncond.nbytes,
        exact=exact,
    )

"""rms_norm_silu: what stands before every convolution of Wan's VAE, channels last, at its widest and at full size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload

CHANNELS, CHUNK = 96, 4


def eager(x: Tensor, gamma: Tensor, bias: None, silu: bool, eps: float) -> Tensor:
    """As Diffusers' ``WanRMS_norm`` and ``nn.SiLU``, over the last axis."""
    return F.silu(F.normalize(x, dim=-1, eps=eps) * x.shape[-1] ** 0.5 * gamma)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    _, height, width = shape.clip
    x = torch.randn(1, CHUNK, height, width, CHANNELS, device=device).to(dtype)
    gamma = torch.randn(CHANNELS, device=device).to(dtype)
    return Workload(
        op="rms_norm_silu",
        shape=name,
        args=(x, gamma, None, True, 1e-12),
        eager=eager,
        flops=8 * x.numel(),
        num_bytes=2 * x.nbytes,
        exact=lambda: [eager(x.double(), gamma.double(), None, True, 1e-12)],
    )

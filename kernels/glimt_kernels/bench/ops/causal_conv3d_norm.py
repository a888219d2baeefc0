"""causal_conv3d_norm: the second convolution of a residual block and the norm with SiLU that begins the next one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.ops import causal_conv3d
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload


def norm(y: Tensor, gamma: Tensor) -> Tensor:
    """As Diffusers' ``WanRMS_norm`` and ``nn.SiLU``."""
    return F.silu(F.normalize(y, dim=1, eps=1e-12) * y.shape[1] ** 0.5 * gamma[:, None, None, None])


def eager(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, plus: Tensor, gamma: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    y = causal_conv3d.eager(x, weight, bias, past, plus)
    return norm(y, gamma), y


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    args = causal_conv3d.tensors(shape, 1, dtype, device)
    gamma = torch.randn(args[0].shape[1], device=device).to(dtype)
    flops, num_bytes = causal_conv3d.work(args)

    def exact() -> list[Tensor]:
        y = causal_conv3d.exact_lines(args)
        return [norm(y, gamma.double()), y]

    return Workload(
        op="causal_conv3d_norm",
        shape=name,
        args=(*args, gamma, True),
        eager=eager,
        flops=flops,
        num_bytes=num_bytes + args[0].nbytes,
        exact=exact,
        part=causal_conv3d.part,
        kind="matrix",
    )

"""What linear means: obvious PyTorch, any floating dtypes, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.linear_quant.quantize import widen
from glimt_kernels.linear_quant.reference import default_dtype, finish


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    value = F.linear(widen(x), widen(weight))
    return finish(value, bias, gate, residual, activation, default_dtype(x, residual))

"""What gelu_tanh means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")

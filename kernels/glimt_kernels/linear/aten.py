"""linear by PyTorch: cuBLAS on CUDA, with bias and GELU(tanh) as its epilogue; else the library PyTorch chooses.

A gate, a residual and GELU(erf) are passes of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.dispatch import Case
from glimt_kernels.linear.call import HALVES, dtype_of, is_many_passes


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    out = _product(x, weight, bias, activation)
    if residual is None:
        return out.contiguous()
    out = residual + out if gate is None else torch.addcmul(residual, out, gate)  # in the widest of their dtypes
    return out.to(residual.dtype).contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    if activation == "gelu_tanh" and bias is not None and x.device.type in ("cuda", "meta") and x.dtype in HALVES:
        rows = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
        return rows.view(*x.shape[:-1], weight.shape[0])
    out = F.linear(x, weight, bias)
    return out if activation == "none" else F.gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")


def reasons(case: Case) -> list[str]:
    """Why it cannot run a linear layer."""
    found = []
    if case.device not in ("cpu", "cuda"):
        found.append(f"PyTorch's libraries are called on a CPU and on CUDA, the tensors are on {case.device}")
    if dtype_of(case) == torch.float64:
        found.append("in float64 the reference is the same product")
    return found


def goes_first(case: Case) -> bool:
    """Whether this goes before Triton where both can run: where the library's product is the one launch there is, and
    in float32, which Triton makes of three products of the matrix units."""
    return dtype_of(case) not in HALVES or not is_many_passes(case)

"""linear_w8a8 by PyTorch's fp8 matrix product with a scale for each row and channel: cuBLAS or CUTLASS on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case

_BFLOAT16 = 2  # its place in the op's sizes (api.py)


def linear_w8a8(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    n, k = weight.shape
    result: Tensor = torch._scaled_mm(
        x.reshape(-1, k).contiguous(),
        weight.contiguous().T,
        scale_a=x_scales.reshape(-1, 1).contiguous(),
        scale_b=weight_scales.reshape(1, n).contiguous(),
        bias=None if bias is None else bias.contiguous(),
        out_dtype=torch.bfloat16,
    )
    return result.view(*x.shape[:-1], n)


def reasons(case: Case) -> list[str]:
    """Why it cannot run; ``case.sizes`` are the op's (api.py)."""
    if not case.sizes:
        return ["it depends on the kind and the sizes of the weight, which are not known"]
    is_int8, blocks, dtype, m, n, k, plain = case.sizes
    found = ["it takes fp8"] if is_int8 else []
    if blocks:
        found.append("it takes scales per row and channel, not per block")
    if dtype != _BFLOAT16:
        found.append("with scales per row it gives bfloat16")
    if not plain:
        found.append("all that it adds is a bias of the output's dtype: with more it would round twice")
    if case.device not in ("cpu", "cuda"):
        found.append(f"PyTorch has the fp8 product on CPU and CUDA, the tensors are on {case.device}")
    if 0 < case.arch < 89:
        found.append(f"it needs sm_89 or newer, the device is sm_{case.arch}")
    if m == 0 or n % 16 or k % 16:
        found.append(f"it takes at least one row, N and K in multiples of 16; found {m} rows, N {n}, K {k}")
    return found


def reluctance(case: Case) -> list[str]:
    """Why it runs only where it is asked for by name."""
    return ["on a CPU PyTorch's product is for trying it out"] if case.device == "cpu" else []

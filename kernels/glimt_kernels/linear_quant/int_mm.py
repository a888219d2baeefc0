"""linear_w8a8 by PyTorch's int8 matrix product: oneDNN on the CPU, cuBLAS on CUDA. The rest as in the reference."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case
from glimt_kernels.linear_quant.reference import default_dtype, finish

SATURATES = "PyTorch's int8 product saturates on this processor"


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
    sums = torch._int_mm(x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous().T)
    value = sums.view(*x.shape[:-1], weight.shape[0]).to(x_scales.dtype)
    value = value * weight_scales * x_scales.unsqueeze(-1)
    return finish(value, bias, gate, residual, activation, out_dtype or default_dtype(x, residual))


def reasons(case: Case) -> list[str]:
    """Why it cannot run; ``case.sizes`` are the op's (api.py)."""
    if not case.sizes:
        return ["it depends on the kind and the sizes of the weight, which are not known"]
    is_int8, blocks, _, m, n, k, _ = case.sizes
    found = [] if is_int8 else ["it takes int8"]
    if blocks:
        found.append("it takes scales per row and channel, not per block")
    if case.device not in ("cpu", "cuda"):
        found.append(f"PyTorch has the int8 product on CPU and CUDA, the tensors are on {case.device}")
    if case.device == "cuda" and (m <= 16 or n % 8 or k % 8):
        found.append(f"cuBLAS takes more than 16 rows, N and K in multiples of 8; found {m} rows, N {n}, K {k}")
    if case.device == "cpu" and not _is_exact():
        found.append(SATURATES)
    return found


@cache
def _is_exact() -> bool:
    """Whether the CPU's product is that of integers: without VNNI, oneDNN may add pairs in 16 bits, which saturate."""
    largest = torch.full((64, 256), -127, dtype=torch.int8)
    largest[::2] = 127
    exact = largest.double() @ largest.double().T
    return torch.equal(torch._int_mm(largest, largest.T).double(), exact)

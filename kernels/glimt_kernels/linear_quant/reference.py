"""What linear_w8a8 and linear_w8 mean: obvious PyTorch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.linear_quant.quantize import dequantize_rows, dequantize_weight, widen


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
    # In float64 sums of int8 and of e4m3 products are exact integers (times a power of two), as the op means them.
    sums = dequantize_rows(x, x_scales.double()) @ dequantize_weight(weight, weight_scales.double()).T
    value = sums if x_scales.dtype == torch.float64 else sums.float()
    return finish(value, bias, gate, residual, activation, out_dtype or default_dtype(x, residual))


def linear_w8(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    wide = widen(x)
    value = F.linear(wide, dequantize_weight(weight, weight_scales.to(wide.dtype)))
    return finish(value, bias, gate, residual, activation, out_dtype or default_dtype(x, residual))


def finish(
    value: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """What follows the product, in the dtype of ``value``, rounded once."""
    if bias is not None:
        value = value + bias.to(value.dtype)
    if activation == "gelu_tanh":
        value = F.gelu(value, approximate="tanh")
    elif activation == "gelu_erf":
        value = F.gelu(value)
    if gate is not None:
        value = value * gate.to(value.dtype)
    if residual is not None:
        value = residual.to(value.dtype) + value
    return value.to(out_dtype).contiguous()


def default_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype of an output where none is asked for: the residual's, else that of x, else (8-bit x) float32."""
    if residual is not None:
        return residual.dtype
    wide = x.dtype.is_floating_point and x.dtype.itemsize > 1
    return x.dtype if wide else torch.float32

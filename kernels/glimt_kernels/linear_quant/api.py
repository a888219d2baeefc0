"""linear_quant: a linear layer whose weight, and perhaps its activations, are eight-bit numbers with scales."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.linear_quant import int_mm, quantize, reference, scaled_mm, triton
from glimt_kernels.linear_quant.quantize import BLOCK, KINDS, QuantizedWeight, check_kind
from glimt_kernels.triton_env import reluctance, triton_reasons

__all__ = ["QuantizedWeight", "linear_quant", "linear_w8", "linear_w8a8", "quantize_rows"]

ACTIVATIONS = ("none", "gelu_tanh")
_PRODUCTS = ("int_mm", "scaled_mm")  # of linear_w8a8 alone: PyTorch has no quantize_rows
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def linear_quant(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    quantize_x: bool = True,
    out: Tensor | None = None,
    impl: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``residual + gate * activation(x W^T + bias)``, each part where it is given, with a weight in eight bits.

    Args:
        x: [..., K] floating.
        weight: of [N, K]; see :func:`glimt_kernels.quantize_weight`.
        bias: [N].
        activation: "gelu_tanh" or None.
        gate: [B, 1, N] for each sample or [B, tokens, N] for each token (B may be 1); only with ``residual``, and with
            x [B, tokens, K].
        residual: [..., N].
        quantize_x: whether x is rounded to the weight's kind first, per row (per group of 128 where the weight has
            blocks), and eight-bit numbers are multiplied (W8A8); else the weight alone has eight bits, and is decoded
            to the dtype of x in the kernel. On sm_80 and sm_86, which multiply no fp8, "fp8" weights work both ways;
            there ``quantize_x=False`` saves the quantization and is more accurate.
        out: like the result, any strides; written and returned instead of a new tensor. It may be the residual.
        impl: "triton", "int_mm" (int8 per channel), "scaled_mm" (fp8 per channel, bfloat16, a bias at most) or
            "reference" instead of the chosen implementation.
        out_dtype: if not that of ``residual``, or without one that of ``x``.

    Returns:
        [..., N], contiguous. Sums of int8 are exact integers; all else is float32 (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, dtypes or names do not fit, or a gradient with respect to x is wanted through its rounding.
        UnsupportedError: ``impl`` cannot run this call.

    Source: per-token and per-channel scales as in LLM.int8 (arXiv:2208.07339), 128 blocks and groups and the second
    accumulator as in DeepSeek-V3 (arXiv:2412.19437), formats as in arXiv:2209.05433.
    """
    dtype = out_dtype or reference.default_dtype(x, residual)
    rest = (weight.data, weight.scales, bias, gate, residual, activation or "none", dtype)
    if not quantize_x:
        return linear_w8(x, *rest, out=out, impl=impl)
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x is rounded to eight bits, which has no gradient; take quantize_x=False, or detach x")
    blocks = weight.granularity == "block"
    data, scales = quantize_rows(x, weight.kind, blocks, impl=None if impl in _PRODUCTS else impl)
    return linear_w8a8(data, scales, *rest, out=out, impl=impl)


def quantize_rows(
    x: Tensor,
    kind: str,
    groups: bool = False,
    *,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Activations in eight bits: ``data * scales`` is x, rounded to nearest even, the largest magnitude exact.

    Args:
        x: [..., K] floating.
        kind: "int8" (to 127) or "fp8" (e4m3, to 448).
        groups: whether each 128 of K have a scale, instead of each row.
        out: a tensor or None for data and for scales, like them, any strides; written and returned instead of new ones.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        data [..., K], int8 or float8_e4m3fn; scales [...] or [..., ceil(K / 128)], float32 (float64 for float64).
        Zeros and rows below 2 ** -100 take the scale of 2 ** -100. Where x is not finite the scale is neither.

    Raises:
        ValueError: an unknown kind, or x is not floating.
        UnsupportedError: ``impl`` cannot run this call.
    """
    check_kind(kind)
    if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"quantize_rows takes x [..., K], floating, K > 0; found {x.dtype} {list(x.shape)}")
    args = (x.detach(), kind, groups)
    result: tuple[Tensor, Tensor] = ROWS(*args, impl=impl) if out is None else ROWS.into(out, *args, impl=impl)
    return result


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
    *,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """:func:`linear_quant` of activations that have eight bits already (from :func:`quantize_rows`, or a fused kernel).

    x [..., K] and weight [N, K] are both int8 or both float8_e4m3fn; scales [...] with [N], or [..., ceil(K / 128)]
    with [ceil(N / 128), ceil(K / 128)]. ``out_dtype``: if not that of ``residual``, or without one float32.
    """
    _check("linear_w8a8", x, x_scales, weight, weight_scales, bias, gate, residual, activation)
    rest = (weight, weight_scales, bias, gate, residual, activation, out_dtype)
    args = (x, x_scales, *rest)
    result: Tensor = W8A8(*args, impl=impl) if out is None else W8A8.into(out, *args, impl=impl)
    return result


def linear_w8(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """:func:`linear_quant` with ``quantize_x=False``, of plain tensors."""
    _check("linear_w8", x, None, weight, weight_scales, bias, gate, residual, activation)
    rest = (weight, weight_scales, bias, gate, residual, activation, out_dtype)
    result: Tensor = W8(x, *rest, impl=impl) if out is None else W8.into(out, x, *rest, impl=impl)
    return result


def _check(
    op: str,
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> None:
    """Raise ValueError if this is no call of ``op``."""
    if activation not in ACTIVATIONS:
        near = difflib.get_close_matches(activation, ACTIVATIONS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{op} takes activation 'gelu_tanh' or none, not {activation!r}{hint}")
    if gate is not None and residual is None:
        raise ValueError(f"{op} takes a gate only together with the residual that the gated branch is added to")
    dtypes = [dtype for dtype, _ in KINDS.values()]
    if weight.dim() == 2 and weight.numel() and weight.dtype in dtypes and x.dim():
        n, k = weight.shape
        blocks = weight_scales.dim() == 2
        fits = [
            x.shape[-1] == k,
            x.dtype in _FLOATS if x_scales is None else x.dtype == weight.dtype,
            list(weight_scales.shape) == ([-(-n // BLOCK), -(-k // BLOCK)] if blocks else [n]),
            x_scales is None or list(x_scales.shape) == [*x.shape[:-1], *([-(-k // BLOCK)] if blocks else [])],
            bias is None or list(bias.shape) == [n],
            residual is None or list(residual.shape) == [*x.shape[:-1], n],
            gate is None or _fits_gate(gate, x, n),
        ]
        if all(fits):
            return
    named = {"x": x, "x_scales": x_scales, "weight": weight, "weight_scales": weight_scales}
    named |= {"bias": bias, "gate": gate, "residual": residual}
    found = ", ".join(f"{name} {t.dtype} {list(t.shape)}" for name, t in named.items() if t is not None)
    both = "x [..., K] floating" if x_scales is None else "x [..., K] of the weight's dtype, x_scales [...]"
    raise ValueError(
        f"{op} takes {both.replace('torch.', '')}, weight [N, K] int8 or float8_e4m3fn, weight_scales [N] (or per 128 "
        f"block, and x_scales then per 128 group), bias [N], residual [..., N], and with x [B, tokens, K] gate "
        f"[B or 1, tokens or 1, N]; found {found}"
    )


def _fits_gate(gate: Tensor, x: Tensor, n: int) -> bool:
    if x.dim() != 3 or gate.dim() != 3:
        return False
    return gate.shape[0] in (1, x.shape[0]) and gate.shape[1] in (1, x.shape[1]) and gate.shape[2] == n


def _fake_rows(x: Tensor, kind: str, groups: bool = False) -> tuple[Tensor, Tensor]:
    data = torch.empty(x.shape, dtype=KINDS[kind][0], device=x.device)
    count = (-(-x.shape[-1] // BLOCK),) if groups else ()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return data, torch.empty((*x.shape[:-1], *count), dtype=dtype, device=x.device)


def _fake_w8a8(
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
    dtype = out_dtype or reference.default_dtype(x, residual)
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype, device=x.device)


def _fake_w8(x: Tensor, weight: Tensor, weight_scales: Tensor, *rest: Any) -> Tensor:
    return _fake_w8a8(x, weight_scales, weight, weight_scales, *rest)


def _sizes_w8a8(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
) -> tuple[int, ...]:
    """(whether int8, whether blocks, the working dtype's place in _FLOATS, M, N, K, whether a bias of the output's
    dtype is all that follows the product)."""
    dtype = out_dtype or reference.default_dtype(x, residual)
    wide = torch.float64 in (dtype, x.dtype, x_scales.dtype, weight_scales.dtype)
    working = torch.float64 if wide else x.dtype if x.dtype in _FLOATS else dtype
    n, k = weight.shape
    plain = activation == "none" and gate is None and residual is None and (bias is None or bias.dtype == dtype)
    return weight.dtype == torch.int8, weight_scales.dim() == 2, _FLOATS.index(working), x.numel() // k, n, k, plain


def _sizes_w8(x: Tensor, weight: Tensor, weight_scales: Tensor, *rest: Any) -> tuple[int, ...]:
    return _sizes_w8a8(x, weight_scales, weight, weight_scales, *rest)


def _triton_reasons(case: Case) -> list[str]:
    dtype = _FLOATS[case.sizes[2]] if case.sizes else case.dtype or torch.float32
    return triton_reasons(case._replace(dtype=dtype))


_REST = (
    "Tensor weight, Tensor weight_scales, Tensor? bias=None, Tensor? gate=None, Tensor? residual=None, "
    'str activation="none", ScalarType? out_dtype=None) -> Tensor'
)
ROWS = define(
    "quantize_rows",
    "(Tensor x, str kind, bool groups=False) -> (Tensor, Tensor)",
    [
        Candidate("quantize_rows", "triton", triton.quantize_rows, triton_reasons, reluctance),
        Candidate("quantize_rows", "reference", quantize.quantize_rows),
    ],
    _fake_rows,
    differentiable=False,
)
W8A8 = define(
    "linear_w8a8",
    f"(Tensor x, Tensor x_scales, {_REST}",
    [
        Candidate("linear_w8a8", "triton", triton.linear_w8a8, _triton_reasons, reluctance),
        Candidate("linear_w8a8", "int_mm", int_mm.linear_w8a8, int_mm.reasons),
        Candidate("linear_w8a8", "scaled_mm", scaled_mm.linear_w8a8, scaled_mm.reasons, scaled_mm.reluctance),
        Candidate("linear_w8a8", "reference", reference.linear_w8a8),
    ],
    _fake_w8a8,
    differentiable=False,
    sizes=_sizes_w8a8,
)
W8 = define(
    "linear_w8",
    f"(Tensor x, {_REST}",
    [
        Candidate("linear_w8", "triton", triton.linear_w8, _triton_reasons, reluctance),
        Candidate("linear_w8", "reference", reference.linear_w8),
    ],
    _fake_w8,
    differentiable=False,
    sizes=_sizes_w8,
)

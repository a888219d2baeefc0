"""linear: the matrix product of a model with what follows it, in one launch on a GPU."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor

from glimt_kernels import outputs
from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.linear import aten, onednn, reference, triton
from glimt_kernels.linear.call import ACTIVATIONS, DTYPES, dtype_of, sizes
from glimt_kernels.linear_quant.reference import default_dtype
from glimt_kernels.triton_env import reluctance, triton_reasons


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """``residual + gate * activation(x W^T + bias)``, each part where it is given.

    Args:
        x: [..., K], float32, float16, bfloat16 or float64.
        weight: [M, K], the dtype of x.
        bias: [M], the dtype of x.
        activation: "gelu_tanh", "gelu_erf" or None.
        gate: [B or 1, G, M] floating, only with ``residual`` and x [B, N, K]: each of G groups of N / G consecutive
            tokens has a gate of its own (G = 1: a sample; G = N: a token).
        residual: [..., M] floating.
        out: like the result, any strides; written and returned instead of a new tensor. It may be the residual.
        impl: "onednn", "triton", "aten" or "reference" instead of the chosen implementation.

    Returns:
        [..., M], contiguous, the dtype of ``residual``, or without one that of x. Accumulated in float32 (float64 for
        float64). Triton rounds once, at the end; "aten" rounds the product before a gate and a residual.

    Raises:
        ValueError: shapes, dtypes or the name do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: GELU, arXiv:1606.08415; the gated residual of DiT, arXiv:2212.09748.
    """
    wanted = activation or "none"
    _check(x, weight, bias, wanted, gate, residual)
    if gate is None or residual is None or gate.shape[1] in (1, x.shape[1]):
        return _call((x, weight, bias, gate, residual, wanted), out, impl)
    shape = residual.shape
    (samples, tokens, _), (_, groups, m) = x.shape, gate.shape
    x, residual = (t.reshape(samples * groups, tokens // groups, t.shape[2]) for t in (x, residual))
    gate = gate.expand(samples, -1, -1).reshape(-1, 1, m)
    grouped = None
    if out is not None:
        outputs.check("linear", [out], [residual.view(shape)], x.device)
        outputs.check_memory("linear", [out])
        grouped = out.view(residual.shape) if out.is_contiguous() else None
    result = _call((x, weight, bias, gate, residual, wanted), grouped, impl).view(shape)
    if out is None:
        return result
    return out if grouped is not None else out.copy_(result)


def _call(args: tuple[Any, ...], out: Tensor | None, impl: str | None) -> Tensor:
    result: Tensor = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate: Tensor | None, residual: Tensor | None
) -> None:
    if activation not in ACTIVATIONS:
        near = difflib.get_close_matches(activation, ACTIVATIONS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"linear takes activation 'gelu_tanh', 'gelu_erf' or None, not {activation!r}{hint}")
    if gate is not None and residual is None:
        raise ValueError("linear takes a gate only together with the residual that the gated branch is added to")
    if x.dim() and weight.dim() == 2:
        m, k = weight.shape
        fits = x.shape[-1] == k and x.dtype == weight.dtype and x.dtype in DTYPES
        fits = fits and (bias is None or (bias.shape == (m,) and bias.dtype == x.dtype))
        fits = fits and (residual is None or _fits_residual(residual, x, m))
        if fits and (gate is None or _fits_gate(gate, x, m)):
            return
    named = {"x": x, "weight": weight, "bias": bias, "gate": gate, "residual": residual}
    raise ValueError(
        "linear takes x [..., K], weight [M, K] and bias [M] of one floating dtype, residual [..., M], and with x "
        "[B, N, K] gate [B or 1, G, M] with G a divisor of N; found "
        + ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in named.items() if t is not None)
    )


def _fits_residual(residual: Tensor, x: Tensor, m: int) -> bool:
    return residual.shape == (*x.shape[:-1], m) and residual.is_floating_point()


def _fits_gate(gate: Tensor, x: Tensor, m: int) -> bool:
    if x.dim() != 3 or gate.dim() != 3 or not gate.is_floating_point():
        return False
    groups = gate.shape[1]
    divides = groups in (1, x.shape[1]) or (groups > 0 and x.shape[1] % groups == 0)
    return gate.shape[0] in (1, x.shape[0]) and divides and gate.shape[2] == m


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=default_dtype(x, residual), device=x.device)


def _triton_reasons(case: Case) -> list[str]:
    return triton_reasons(case._replace(dtype=dtype_of(case)))


def _triton_reluctance(case: Case) -> list[str]:
    if case.device == "cuda" and aten.goes_first(case):
        return ["cuBLAS goes first where it is one launch too, and in float32"]
    return reluctance(case)


def _aten_reluctance(case: Case) -> list[str]:
    if case.device == "cuda" and not aten.goes_first(case) and not _triton_reasons(case):
        return ["Triton goes first: here a pass of its own follows the product"]
    return []


OP = define(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? gate=None, Tensor? residual=None, "
    'str activation="none") -> Tensor',
    [
        Candidate("linear", "onednn", onednn.linear, onednn.reasons),
        Candidate("linear", "triton", triton.linear, _triton_reasons, _triton_reluctance),
        Candidate("linear", "aten", aten.linear, aten.reasons, _aten_reluctance),
        Candidate("linear", "reference", reference.linear),
    ],
    _fake,
    sizes=sizes,
)

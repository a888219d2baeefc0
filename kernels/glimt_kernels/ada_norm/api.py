"""ada_norm: LayerNorm with a modulation from the timestep, alone or after adding a gated branch to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from glimt_kernels.ada_norm import native, reference, triton
from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.eight_bit.reference import arch_reasons, check_dtype
from glimt_kernels.outputs import Given
from glimt_kernels.triton_env import reluctance, triton_reasons


@overload
def ada_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    gate: None = None,
    residual: None = None,
    *,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor: ...
@overload
def ada_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    gate: Tensor | None,
    residual: Tensor,
    *,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def ada_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Given | None = None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``(x - mean) / sqrt(var + eps) * (1 + scale) + shift`` over the last axis (``var`` biased).

    With ``residual``, ``x`` is the output of a branch, and what is normalized is the residual stream after it,
    ``stream = residual + gate * x`` (``residual + x`` without a gate); see :func:`gated_ada_norm`.

    Args:
        x: [B, N, D] floating, last axis contiguous (else copied first).
        scale, shift: [B, 1, D] for each sample, or [B, N, D] for each token; B may be 1. The last axis must be
            contiguous (else copied first); slices of a [B, N, 6, D] table are taken as they are.
        eps: added to the variance.
        gate: like ``scale``; only with ``residual``.
        residual: [B, N, D], the residual stream before the branch.
        out: like the result (with ``residual`` a tensor or None for each of the two), any strides; written and returned
            instead of a new tensor.
        impl: "native", "triton" or "reference" instead of the chosen implementation.

    Returns:
        The normalized [B, N, D], contiguous, the dtype of ``x``; computed in float32 (float64 for float64).
        With ``residual``: ``(normalized, stream)``.

    Raises:
        ValueError: shapes do not fit, or a gate without a residual.
        UnsupportedError: ``impl`` cannot run this call.

    Source: adaptive layer norm of DiT (arXiv:2212.09748) as in ``wan/modules/model.py``.
    """
    if residual is not None:
        both = (out, None) if isinstance(out, Tensor) else out
        return gated_ada_norm(x, residual, gate, scale, shift, eps, out=both, impl=impl)
    if gate is not None:
        raise ValueError("ada_norm takes a gate only together with the residual that the gated branch is added to")
    _check(x, None, scale=scale, shift=shift)
    args = (x, scale, shift, eps)
    result: Tensor = ADA_NORM(*args, impl=impl) if out is None else ADA_NORM.into(out, *args, impl=impl)
    return result


def gated_ada_norm(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    *,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``stream = residual + gate * x`` and ``ada_norm(stream, scale, shift, eps)`` in one pass.

    Arguments, errors and source as in :func:`ada_norm`.

    Returns:
        ``(normalized, stream)``, both [B, N, D] and contiguous. Neither input is changed.
    """
    _check(x, residual, scale=scale, shift=shift, **({} if gate is None else {"gate": gate}))
    args = (x, residual, gate, scale, shift, eps)
    result: tuple[Tensor, Tensor] = GATED(*args, impl=impl) if out is None else GATED.into(out, *args, impl=impl)
    return result


def ada_norm_8bit(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    *,
    dtype: torch.dtype = torch.int8,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`ada_norm`, each row then in 8 bits: ``row_scale = max(amax, 2^-100) / limit``, ``level = y / row_scale``
    to the nearest, halves to even; limit 127 for int8, 448 for float8_e4m3fn.

    Args:
        x, scale, shift, eps: as in :func:`ada_norm`.
        dtype: torch.int8 or torch.float8_e4m3fn.
        out: a tensor or None for each result, like it, any strides; written and returned instead of new ones.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        ``(level, row_scale)``: [B, N, D] of ``dtype`` and [B, N] float32, contiguous: what ``linear_w8a8`` takes.
        ``level * row_scale`` is the normalized row, quantized from float32. No gradient. The scale of a row that is
        not finite is not finite.

    Raises:
        ValueError: as in :func:`ada_norm`, or another dtype.
        UnsupportedError: ``impl`` cannot run this call.
    """
    _check(x, None, scale=scale, shift=shift)
    check_dtype("ada_norm_8bit", dtype)
    args = (x.detach(), scale.detach(), shift.detach(), eps, dtype)
    op = ADA_NORM_8BIT
    result: tuple[Tensor, Tensor] = op(*args, impl=impl) if out is None else op.into(out, *args, impl=impl)
    return result


def gated_ada_norm_8bit(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    *,
    dtype: torch.dtype = torch.int8,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``stream = residual + gate * x`` and ``ada_norm_8bit(stream, scale, shift, eps)`` in one pass.

    Arguments and errors as in :func:`gated_ada_norm` and :func:`ada_norm_8bit`.

    Returns:
        ``(level, row_scale, stream)``; ``stream`` [B, N, D] in the dtype of ``residual``. No gradient.
    """
    _check(x, residual, scale=scale, shift=shift, **({} if gate is None else {"gate": gate}))
    check_dtype("gated_ada_norm_8bit", dtype)
    tensors = [None if t is None else t.detach() for t in (x, residual, gate, scale, shift)]
    args, op = (*tensors, eps, dtype), GATED_8BIT
    result: tuple[Tensor, Tensor, Tensor] = op(*args, impl=impl) if out is None else op.into(out, *args, impl=impl)
    return result


def _check(x: Tensor, residual: Tensor | None, **modulation: Tensor) -> None:
    if x.dim() == 3 and (residual is None or residual.shape == x.shape):
        b, n, d = x.shape
        if all(
            m.dim() == 3 and m.shape[0] in (1, b) and m.shape[1] in (1, n) and m.shape[2] == d
            for m in modulation.values()
        ):
            return
    named = {"x": x, **({} if residual is None else {"residual": residual}), **modulation}
    raise ValueError(
        "ada_norm takes x and residual [B, N, D], and scale, shift and gate [B or 1, N or 1, D]; found "
        + ", ".join(f"{name} {list(t.shape)}" for name, t in named.items())
    )


def _fake(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_gated(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    def empty() -> Tensor:
        return torch.empty(x.shape, dtype=residual.dtype, device=x.device)

    return empty(), empty()


def _fake_8bit(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    level = torch.empty(x.shape, dtype=dtype, device=x.device)
    return level, torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)


def _fake_gated_8bit(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    return *_fake_8bit(x, scale, shift, eps, dtype), stream


def _sizes_8bit(*args: object) -> tuple[int, ...]:
    return (int(args[-1] == torch.float8_e4m3fn),)


def _reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return reference.ada_norm(x, scale, shift, eps).contiguous()


def _reference_gated(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    normalized, stream = reference.gated_ada_norm(x, residual, gate, scale, shift, eps)
    return normalized.contiguous(), stream.contiguous()


def _triton_reasons(case: Case) -> list[str]:
    return triton_reasons(case._replace(dtype=torch.float32 if case.dtype is None else case.dtype))


def _reference_8bit(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    level, row_scale = reference.ada_norm_8bit(x, scale, shift, eps, dtype)
    return level.contiguous(), row_scale.contiguous()


def _reference_gated_8bit(
    x: Tensor, residual: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    level, row_scale, stream = reference.gated_ada_norm_8bit(x, residual, gate, scale, shift, eps, dtype)
    return level.contiguous(), row_scale.contiguous(), stream.contiguous()


def _triton_reasons_8bit(case: Case) -> list[str]:
    eight = torch.float8_e4m3fn if case.sizes and case.sizes[0] else torch.int8
    return _triton_reasons(case) + arch_reasons(case.arch, eight)


ADA_NORM = define(
    "ada_norm",
    "(Tensor x, Tensor scale, Tensor shift, float eps) -> Tensor",
    [
        Candidate("ada_norm", "native", native.ada_norm, native.reasons),
        Candidate("ada_norm", "triton", triton.ada_norm, _triton_reasons, reluctance),
        Candidate("ada_norm", "reference", _reference),
    ],
    _fake,
)
GATED = define(
    "gated_ada_norm",
    "(Tensor x, Tensor residual, Tensor? gate, Tensor scale, Tensor shift, float eps) -> (Tensor, Tensor)",
    [
        Candidate("gated_ada_norm", "native", native.gated_ada_norm, native.reasons),
        Candidate("gated_ada_norm", "triton", triton.gated_ada_norm, _triton_reasons, reluctance),
        Candidate("gated_ada_norm", "reference", _reference_gated),
    ],
    _fake_gated,
)
ADA_NORM_8BIT = define(
    "ada_norm_8bit",
    "(Tensor x, Tensor scale, Tensor shift, float eps, ScalarType dtype) -> (Tensor, Tensor)",
    [
        Candidate("ada_norm_8bit", "triton", triton.ada_norm_8bit, _triton_reasons_8bit, reluctance),
        Candidate("ada_norm_8bit", "reference", _reference_8bit),
    ],
    _fake_8bit,
    differentiable=False,
    sizes=_sizes_8bit,
)
GATED_8BIT = define(
    "gated_ada_norm_8bit",
    "(Tensor x, Tensor residual, Tensor? gate, Tensor scale, Tensor shift, float eps, ScalarType dtype) "
    "-> (Tensor, Tensor, Tensor)",
    [
        Candidate("gated_ada_norm_8bit", "triton", triton.gated_ada_norm_8bit, _triton_reasons_8bit, reluctance),
        Candidate("gated_ada_norm_8bit", "reference", _reference_gated_8bit),
    ],
    _fake_gated_8bit,
    differentiable=False,
    sizes=_sizes_8bit,
)

"""attention: softmax attention of queries over keys, optionally with a bias per key and the log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor

from glimt_kernels.attention import cudnn, eight_bit, flash_attn, flashinfer, reference, sage, sdpa, triton
from glimt_kernels.attention.call import call_of, chip, dtype_of, into, sizes
from glimt_kernels.dispatch import Candidate, Case, Op, define
from glimt_kernels.triton_env import DTYPES, reluctance, triton_reasons

# Best first on each chip, from published rates (README.md); 0 is a CPU. What is not listed runs only where asked for by
# name.
PREFERRED: Mapping[int, tuple[str, ...]] = {
    0: ("sdpa",),
    80: ("triton", "sdpa"),
    86: ("triton", "sdpa"),
    89: ("triton", "sdpa"),
    90: ("flash_attn", "cudnn", "triton", "sdpa"),
    100: ("cudnn", "flash_attn", "triton", "sdpa"),
    120: ("triton", "sdpa"),
}
# In float32 Triton computes without matrix units.
PREFERRED_FLOAT32 = ("sdpa", "triton")


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    return_lse: Literal[False] = False,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    return_lse: Literal[True],
    out: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(scale * q k^T + bias) v`` in every head.

    Args:
        q: [B, N, heads, head_dim] floating. Any strides; head_dim not contiguous is copied first, as for k and v.
        k, v: [B, L, heads, head_dim], the dtype of q.
        scale: positive; 1 / sqrt(head_dim) if None.
        bias: [B, L] floating, added to the logits of a key; -inf masks it, and log(n) counts it n times.
        return_lse: whether to give the natural log of the sum of the exponentiated logits as well.
        out: [B, N, heads, head_dim] of q's dtype; written and returned instead of a new tensor.
        impl: "triton", "flash_attn", "cudnn", "flashinfer", "sdpa", "sage", "eight_bit" or "reference" instead of the
            chosen implementation.

    Returns:
        [B, N, heads, head_dim], contiguous, the dtype of q; computed in float32 (float64 for float64). Zeros in a
        sample all of whose keys are masked, or that has none. With ``return_lse`` also [B, heads, N] float32 (float64),
        there -inf.

    Raises:
        ValueError: shapes or dtypes do not fit, or scale is not positive.
        UnsupportedError: ``impl`` cannot run this call.

    Source: arXiv:1706.03762; computed as in arXiv:2307.08691.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k, v, scale, bias, out)
    args = (q, k, v, scale, bias)
    if return_lse:
        pair: tuple[Tensor, Tensor] = _call(ATTENTION_LSE, args, out, impl)
        return pair
    result: Tensor = _call(ATTENTION, args, out, impl)
    return result


def _call(op: Op, args: tuple[Any, ...], out: Tensor | None, impl: str | None) -> Any:
    return op(*args, impl=impl) if out is None else op.into(out, *args, impl=impl)


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"attention takes a positive scale; found {scale}")
    fits = q.dim() == k.dim() == 4 and v.shape == k.shape and k.shape == (q.shape[0], k.shape[1], *q.shape[2:])
    fits = fits and (bias is None or bias.shape == k.shape[:2]) and (out is None or out.shape == q.shape)
    same = all(x is None or x.dtype == q.dtype for x in (k, v, out)) and (bias is None or bias.is_floating_point())
    if fits and same:
        return
    named = {"q": q, "k": k, "v": v, "bias": bias, "out": out}
    raise ValueError(
        "attention takes q and out [B, N, heads, head_dim] and k, v [B, L, heads, head_dim] of one dtype, and a "
        "floating bias [B, L]; found "
        + ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in named.items() if x is not None)
    )


def _reference(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return into(out, reference.attention(q, k, v, scale, bias))


def _reference_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    result, lse = reference.attention_lse(q, k, v, scale, bias)
    return into(out, result), lse


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    b, n, heads, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _fake(q, k, v, scale, bias), torch.empty((b, heads, n), dtype=dtype, device=q.device)


def _triton_reasons(case: Case) -> list[str]:
    found = triton_reasons(case._replace(dtype=dtype_of(case)), DTYPES)
    if call_of(case).head_dim > 256:
        found.append(f"it takes a head_dim of at most 256, found {call_of(case).head_dim}")
    return found


_REASONS: Mapping[str, Callable[[Case], list[str]]] = {
    "triton": _triton_reasons,
    "flash_attn": flash_attn.reasons,
    "cudnn": cudnn.reasons,
    "sdpa": sdpa.reasons,
}


def _unless_preferred(impl: str) -> Callable[[Case], list[str]]:
    """Why ``impl`` lets another go first on a chip."""

    def reluctant(case: Case) -> list[str]:
        known = chip(case.arch)
        order = PREFERRED[known] if known == 0 or dtype_of(case) != torch.float32 else PREFERRED_FLOAT32
        place = f"sm_{known}" if known else "a CPU"
        if impl not in order:
            return [f"it is not preferred on {place}"]
        better = [other for other in order[: order.index(impl)] if not _REASONS[other](case)]
        return [f"on {place} {better[0]} goes first"] if better else []

    return reluctant


def _triton_reluctance(case: Case) -> list[str]:
    return reluctance(case) or _unless_preferred("triton")(case)


_ARGUMENTS = "(Tensor q, Tensor k, Tensor v, float scale, Tensor? bias)"
ATTENTION: Op = define(
    "attention",
    f"{_ARGUMENTS} -> Tensor",
    [
        Candidate("attention", "triton", triton.attention, _triton_reasons, _triton_reluctance),
        Candidate("attention", "flash_attn", flash_attn.attention, flash_attn.reasons, _unless_preferred("flash_attn")),
        Candidate("attention", "cudnn", cudnn.attention, cudnn.reasons, _unless_preferred("cudnn")),
        Candidate("attention", "flashinfer", flashinfer.attention, flashinfer.reasons, _unless_preferred("flashinfer")),
        Candidate("attention", "sdpa", sdpa.attention, sdpa.reasons, _unless_preferred("sdpa")),
        Candidate("attention", "sage", sage.attention, sage.reasons, sage.reluctance),
        Candidate("attention", "eight_bit", eight_bit.attention, eight_bit.reasons, eight_bit.reluctance),
        Candidate("attention", "reference", _reference),
    ],
    _fake,
    sizes=sizes,
)


def _without_lse(impl: str) -> Candidate:
    reason = "the log-sum-exp is taken from Triton alone: libraries differ in its layout and in when they give it"
    return Candidate("attention_lse", impl, _reference_lse, lambda case: [reason])


ATTENTION_LSE: Op = define(
    "attention_lse",
    f"{_ARGUMENTS} -> (Tensor, Tensor)",
    [
        Candidate("attention_lse", "triton", triton.attention_lse, _triton_reasons, reluctance),
        *map(_without_lse, ("flash_attn", "cudnn", "flashinfer", "sdpa", "sage", "eight_bit")),
        Candidate("attention_lse", "reference", _reference_lse),
    ],
    _fake_lse,
    sizes=sizes,
)

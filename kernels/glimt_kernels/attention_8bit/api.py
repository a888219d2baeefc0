"""attention_8bit: softmax attention whose products take 8-bit numbers with scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from glimt_kernels.attention_8bit import reference, triton
from glimt_kernels.dispatch import Candidate, Case, case_of, define
from glimt_kernels.eight_bit.reference import LIMITS
from glimt_kernels.quantize_qkv.api import FP8, check_block, quantize_blocks, quantize_channels
from glimt_kernels.triton_env import reluctance, triton_reasons

# Of each 16-bit or 8-bit format of the values, with int8 or fp8 queries and keys: what a picture loses. Computed by
# tests/kernels/test_attention_8bit.py from the budget; README.md has the errors.
QUALITY: Mapping[torch.dtype, str] = dict.fromkeys((FP8, torch.float16, torch.bfloat16), "lossy")
VALUES = tuple(QUALITY)
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
# Every 17th key is enough to know about where the mean is; a prime, so that all columns of a token grid are met.
SAMPLED = 17


class Formats(NamedTuple):
    """Dtypes of queries and keys, and of values."""

    qk: torch.dtype
    pv: torch.dtype


def preferred(arch: int, dtype: torch.dtype) -> Formats:
    """The fastest formats of a chip for values of ``dtype``: no fp8 before sm_89, and on sm_100 fp8 alone is fast."""
    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    return Formats(FP8 if 100 <= arch < 120 else torch.int8, half if 0 < arch < 89 else FP8)


def preferred_formats(x: Tensor) -> Formats:
    """:func:`preferred` for the device and the dtype of ``x``."""
    return preferred(case_of([x]).arch, x.dtype)


def attention_8bit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    qk: torch.dtype | None = None,
    pv: torch.dtype | None = None,
    block: int = 128,
    centred: bool = True,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """``softmax(scale * q k^T + bias) v`` in every head, as ``attention``, with the operands rounded to 8 bits first.

    Quality: lossy, in all formats. Where a kernel before it can give 8-bit queries and keys (qk_norm_rope_8bit), take
    :func:`attention_8bit_levels`: this one reads and writes them once more.

    Args:
        q, k, v, scale, bias: as in :func:`glimt_kernels.attention`; not float64.
        qk: torch.int8 or torch.float8_e4m3fn for queries and keys; if None int8, and float8 on sm_100.
        pv: for weights and values, torch.float8_e4m3fn, float16 or bfloat16; if None float8, and before sm_89, which
            has none, the 16-bit format of v.
        block: tokens of q and k that share a scale, 64 or 128.
        centred: whether the mean of every 17th key is subtracted from all keys first: no softmax changes, and levels
            get finer where keys have a mean, as those of trained networks do.
        out: [B, N, heads, head_dim] of q's dtype; written and returned instead of a new tensor.
        impl: "triton" or "reference" for the attention instead of the chosen implementation.

    Numbers of tokens can be dynamic in ``torch.export``. It takes a size of one for another kind of graph, and a number
    of blocks is a size: an example of more than ``block`` tokens gives a graph for all such lengths, which refuses the
    others with the guard that they fail.

    Returns:
        [B, N, heads, head_dim], contiguous, the dtype of q. Zeros in a sample all of whose keys are masked, or that
        has none. No gradient.

    Raises:
        ValueError: shapes or dtypes do not fit, or scale is not positive.
        UnsupportedError: ``impl`` cannot run this call.

    Source: SageAttention 1 and 2 (arXiv:2410.02367, arXiv:2411.10958); weights times 256, keys from the end:
    arXiv:2606.06521.
    """
    if any(x.dtype != q.dtype for x in (k, v)) or q.dtype not in OUTPUTS:
        raise ValueError(
            f"attention_8bit takes q, k and v of one dtype, bfloat16, float16 or float32; found {q.dtype}, {k.dtype}, "
            f"{v.dtype}"
        )
    default = preferred_formats(v)
    qk, pv = default.qk if qk is None else qk, default.pv if pv is None else pv
    if pv not in VALUES:
        raise ValueError(f"attention_8bit takes pv float8_e4m3fn, float16 or bfloat16; found {pv}")
    mean = k.detach()[:, ::SAMPLED].mean(1, dtype=torch.float32) if centred else None
    queries = quantize_blocks(q, block=block, dtype=qk)
    keys = quantize_blocks(k, mean=mean, block=block, dtype=qk)
    values = quantize_channels(v) if pv == FP8 else (v.detach().to(pv), None)
    return attention_8bit_levels(
        *queries, *keys, *values, block=block, scale=scale, bias=bias, dtype=q.dtype, out=out, impl=impl
    )


def attention_8bit_levels(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None = None,
    *,
    block: int = 128,
    scale: float | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """``softmax(scale * Q K^T + bias) V`` in every head of what 8-bit levels and their scales stand for:
    ``Q = q * q_scale``, ``K = k * k_scale``, ``V = v * v_scale``.

    Args:
        q, k: [B, N, heads, head_dim] and [B, L, heads, head_dim], both int8 or both float8_e4m3fn, with
        q_scale, k_scale: [B, heads, ceil(N / block)] and [B, heads, ceil(L / block)] float32: what qk_norm_rope_8bit
            and :func:`quantize_blocks` give.
        v: [B, L, heads, head_dim]: float8_e4m3fn with v_scale [B, heads, head_dim] float32, as
            :func:`quantize_channels` gives it, tokens of a channel together (another layout is copied into that one);
            or float16 or bfloat16, beside int8 queries and keys, without v_scale.
        block: tokens that share a scale of q or k, 64 or 128.
        scale: positive; 1 / sqrt(head_dim) if None. It costs nothing here; what the scales of q hold already
            (``q_factor``) must not be in it.
        bias: [B, L] floating, added to the logits of a key; -inf masks it, and log(n) counts it n times. Empty places
            of an ordered k must be masked.
        dtype: of the result: bfloat16, float16 or float32.
        out: [B, N, heads, head_dim] of ``dtype``; written and returned instead of a new tensor.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        [B, N, heads, head_dim], contiguous. Sums of int8 are exact integers, softmax and sums are float32; weights are
        rounded to the dtype of v, for float8 in steps of 2^-17 of the largest at least. Zeros in a sample all of whose
        keys are masked, or that has none. No gradient, and no log of the sum: the mean that was taken from the keys
        shifts it by what this op does not see.

    Raises:
        ValueError: shapes, dtypes or block do not fit, or scale is not positive.
        UnsupportedError: ``impl`` cannot run this call.

    Source: as :func:`attention_8bit`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tensors = {"q": q, "q_scale": q_scale, "k": k, "k_scale": k_scale, "v": v, "v_scale": v_scale, "bias": bias}
    check_block("attention_8bit", block)
    wrong = _wrong_dtypes(q, k, v, v_scale, dtype, out) + _wrong_shapes({**tensors, "out": out}, block)
    if not 0 < scale < math.inf:
        wrong.append(f"scale must be positive, found {scale}")
    if bias is not None and not bias.is_floating_point():
        wrong.append(f"bias must be floating, found {bias.dtype}")
    scales = ((name, x) for name, x in tensors.items() if name.endswith("_scale") and x is not None)
    wrong += [f"{name} must be float32, found {x.dtype}" for name, x in scales if x.dtype != torch.float32]
    if wrong:
        raise ValueError("attention_8bit cannot take this: " + "; ".join(wrong))
    *levels, key_bias = (None if x is None else x.detach() for x in tensors.values())
    args = (*levels, block, scale, key_bias, dtype)
    result: Tensor = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def _wrong_dtypes(
    q: Tensor, k: Tensor, v: Tensor, v_scale: Tensor | None, dtype: torch.dtype, out: Tensor | None
) -> list[str]:
    wrong = []
    if q.dtype not in LIMITS or k.dtype != q.dtype:
        wrong.append(f"q and k must both be int8 or float8_e4m3fn, found {q.dtype} and {k.dtype}")
    if v.dtype not in VALUES or (v.dtype == FP8) != (v_scale is not None):
        found = "no v_scale" if v_scale is None else "a v_scale"
        wrong.append(f"v must be float8_e4m3fn with v_scale, or float16 or bfloat16 without; found {v.dtype}, {found}")
    elif q.dtype == FP8 and v.dtype != FP8:
        wrong.append(f"float8_e4m3fn q and k go with v of that dtype, found {v.dtype}")
    if dtype not in OUTPUTS or (out is not None and out.dtype != dtype):
        given = "" if out is None else f" and out {out.dtype}"
        wrong.append(f"dtype must be bfloat16, float16 or float32, and that of out; found {dtype}{given}")
    return wrong


def _wrong_shapes(tensors: Mapping[str, Tensor | None], block: int) -> list[str]:
    q, k = tensors["q"], tensors["k"]
    if q is None or k is None or q.dim() != 4 or k.dim() != 4:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k)) if x is not None)
        return [f"q must be [B, N, heads, head_dim] and k [B, L, heads, head_dim], found {found}"]
    samples, tokens, heads, head_dim = q.shape
    keys = k.shape[1]
    expected = {
        # Written as the op that gives them does: an exported graph takes no two forms of one number for the same.
        "q_scale": (samples, heads, (tokens + block - 1) // block),
        "k": (samples, keys, heads, head_dim),
        "k_scale": (samples, heads, (keys + block - 1) // block),
        "v": (samples, keys, heads, head_dim),
        "v_scale": (samples, heads, head_dim),
        "bias": (samples, keys),
        "out": q.shape,
    }
    given = ((name, tensors[name], shape) for name, shape in expected.items())
    return [
        f"{name} must be {list(shape)}, found {list(x.shape)}"
        for name, x, shape in given
        if x is not None and tuple(x.shape) != tuple(shape)
    ]


def _fake(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(q.shape, dtype=dtype, device=q.device)


class Call(NamedTuple):
    """``Case.sizes`` of this op: whether any operand is fp8, and whether values or result are bfloat16."""

    head_dim: int = 128
    fp8: int = 0
    bf16: int = 0


def _sizes(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    block: int,
    scale: float,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    return Call(q.shape[3], int(FP8 in (q.dtype, v.dtype)), int(torch.bfloat16 in (v.dtype, dtype)))


def triton_reasons_of(case: Case, call: Call) -> list[str]:
    """Why Triton's kernel cannot run ``call``."""
    wide = torch.bfloat16 if call.bf16 else torch.float32
    found = triton_reasons(case._replace(dtype=wide if case.sizes or case.dtype is None else case.dtype))
    if call.fp8 and 0 < case.arch < 89:
        found.append(
            f"float8_e4m3fn needs sm_89 or newer, the device is sm_{case.arch}; take int8 q and k and float16 values"
        )
    if call.head_dim > 256:
        found.append(f"it takes a head_dim of at most 256, found {call.head_dim}")
    return found


def _triton_reasons(case: Case) -> list[str]:
    return triton_reasons_of(case, Call(*case.sizes))


OP = define(
    "attention_8bit",
    "(Tensor q, Tensor q_scale, Tensor k, Tensor k_scale, Tensor v, Tensor? v_scale, int block, float scale, "
    "Tensor? bias, ScalarType dtype) -> Tensor",
    [
        Candidate("attention_8bit", "triton", triton.attention_8bit, _triton_reasons, reluctance),
        Candidate("attention_8bit", "reference", reference.attention_8bit),
    ],
    _fake,
    differentiable=False,
    sizes=_sizes,
)

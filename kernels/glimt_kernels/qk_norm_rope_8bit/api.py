"""qk_norm_rope_8bit: qk_norm_rope that gives the 8-bit queries and keys of an 8-bit attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.eight_bit.reference import arch_reasons, check_dtype
from glimt_kernels.qk_norm_rope.api import check, check_order, qk_norm_rope
from glimt_kernels.qk_norm_rope_8bit import reference, triton
from glimt_kernels.triton_env import reluctance, triton_reasons

BLOCKS = (64, 128)
Result = tuple[Tensor, Tensor, Tensor, Tensor]


def qk_norm_rope_8bit(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    per_head: bool = False,
    pairs: str = "interleaved",
    dtype: torch.dtype = torch.int8,
    block: int = 128,
    q_factor: float = 1.0,
    k_mean: Tensor | None = None,
    order: Tensor | None = None,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> Result:
    """``qk_norm_rope``, then for each block of tokens of each head ``scale = max(amax, 2^-100) / limit`` and
    ``level = x / scale`` to the nearest, halves to even; limit 127 for int8, 448 for float8_e4m3fn.

    Args:
        q, k, q_weight, k_weight, cos, sin, eps, per_head, pairs: as in :func:`glimt_kernels.qk_norm_rope`.
        dtype: torch.int8 or torch.float8_e4m3fn.
        block: tokens that share a scale, 64 or 128.
        q_factor: the scales of q are multiplied by it: ``log2(e) / sqrt(head_dim)`` leaves an attention that works
            with powers of two nothing to multiply.
        k_mean: [B, heads, head_dim], subtracted from every normalized and turned key before it is quantized. The
            same for all keys, it changes no softmax, whatever it is; the mean of the keys makes the levels finest,
            and that of a few (:func:`estimate_k_mean`) nearly as fine.
        order: [M] int32 or int64: place p of the outputs holds token ``order[p]``, as in ``x[:, order]``, and blocks
            are blocks of places. A number outside [0, N) leaves the place empty (zeros), so that ragged tiles can be
            filled up to whole blocks. Without it, M = N and places are tokens.
        out: a tensor or None for each result, like it, any strides; written and returned instead of new ones.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        ``(q, q_scale, k, k_scale)``: q and k [B, M, heads, head_dim] of ``dtype``, scales [B, heads, ceil(M / block)]
        float32, all contiguous. ``level * scale`` is the value (for q times ``q_factor``). No gradient. The scale of a
        block with a token that is not finite is not finite.

    Raises:
        ValueError: shapes do not fit; pairs, dtype, block or the dtype of ``order`` is none of those named.
        UnsupportedError: ``impl`` cannot run this call.

    Source: SageAttention (arXiv:2410.02367): per-block scales, the mean of the keys subtracted.
    """
    check("qk_norm_rope_8bit", q, k, q_weight, k_weight, cos, sin, per_head, pairs)
    check_dtype("qk_norm_rope_8bit", dtype)
    _check(q, block, k_mean, order)
    tensors = [t.detach() for t in (q, k, q_weight, k_weight, cos, sin)]
    mean = None if k_mean is None else k_mean.detach()
    args = (*tensors, eps, per_head, pairs, dtype, block, q_factor, mean, order)
    result: Result = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def estimate_k_mean(
    k: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    per_head: bool = False,
    pairs: str = "interleaved",
    every: int = 17,
) -> Tensor:
    """The mean of every 17th normalized and turned key, for ``k_mean``: [B, heads, head_dim] float32.

    Any vector is exact there; the mean of all would cost one more pass over the keys and make no finer levels that
    one could see. (A prime, so that all columns of a token grid are met.)

    Raises:
        ValueError: as :func:`qk_norm_rope_8bit`, or every is not positive.
    """
    check("estimate_k_mean", k, k, k_weight, k_weight, cos, sin, per_head, pairs)
    if every < 1:
        raise ValueError(f"estimate_k_mean takes a positive every, not {every}")
    few, angles = k.detach()[:, ::every], (cos[::every], sin[::every])
    _, turned = qk_norm_rope(few, few, k_weight, k_weight, *angles, eps, per_head=per_head, pairs=pairs)
    return turned.detach().mean(1, dtype=torch.float32)


def _check(q: Tensor, block: int, k_mean: Tensor | None, order: Tensor | None) -> None:
    if block not in BLOCKS:
        raise ValueError(f"qk_norm_rope_8bit takes block 64 or 128, not {block}")
    b, _, heads, head_dim = q.shape
    if k_mean is not None and k_mean.shape != (b, heads, head_dim):
        raise ValueError(
            f"qk_norm_rope_8bit takes k_mean [B, heads, head_dim], here [{b}, {heads}, {head_dim}]; "
            f"found {list(k_mean.shape)}"
        )
    check_order("qk_norm_rope_8bit", order)


def _fake(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool,
    pairs: str,
    dtype: torch.dtype,
    block: int,
    q_factor: float,
    k_mean: Tensor | None,
    order: Tensor | None,
) -> Result:
    b, n, heads, head_dim = q.shape
    places = n if order is None else order.shape[0]

    def level() -> Tensor:
        return torch.empty((b, places, heads, head_dim), dtype=dtype, device=q.device)

    def scale() -> Tensor:
        return torch.empty((b, heads, (places + block - 1) // block), dtype=torch.float32, device=q.device)

    return level(), scale(), level(), scale()


def _sizes(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool,
    pairs: str,
    dtype: torch.dtype,
    *rest: object,
) -> tuple[int, ...]:
    return (int(dtype == torch.float8_e4m3fn),)


def _triton_reasons(case: Case) -> list[str]:
    eight = torch.float8_e4m3fn if case.sizes and case.sizes[0] else torch.int8
    wide = case._replace(dtype=torch.float32 if case.dtype is None else case.dtype)
    return triton_reasons(wide) + arch_reasons(case.arch, eight)


OP = define(
    "qk_norm_rope_8bit",
    "(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, float eps, bool per_head, "
    "str pairs, ScalarType dtype, int block, float q_factor, Tensor? k_mean, Tensor? order) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    [
        Candidate("qk_norm_rope_8bit", "triton", triton.qk_norm_rope_8bit, _triton_reasons, reluctance),
        Candidate("qk_norm_rope_8bit", "reference", reference.qk_norm_rope_8bit),
    ],
    _fake,
    differentiable=False,
    sizes=_sizes,
)

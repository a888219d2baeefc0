"""qk_norm_rope: RMS norm over the full width or each head, then rotary positions: how self-attention begins."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.qk_norm_rope import native, reference, triton
from glimt_kernels.triton_env import reluctance, triton_reasons

PAIRS = ("interleaved", "half")


def qk_norm_rope(
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
    order: Tensor | None = None,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` for q and k alike, over all heads of a token together or over each
    head by itself; then each pair of channels ``(a, b)`` of every head becomes ``(a cos - b sin, a sin + b cos)``.

    Args:
        q, k: [B, N, heads, head_dim] floating, head_dim even. The last axis must be contiguous, the others need not
            be: ``qkv.chunk(3, -1)`` of a fused projection is taken as it is. Any other layout is copied first (the
            CPU kernel also copies heads that do not lie together).
        q_weight, k_weight: [heads * head_dim]; with ``per_head`` [head_dim], the same for all heads.
        cos, sin: [N, head_dim / 2], one angle per pair, the same for every sample and head; or
            [N, heads, head_dim / 2] where heads have angles of their own (LTX).
        eps: added to the mean square.
        per_head: whether the mean is over head_dim (Hunyuan) or over heads * head_dim (Wan, LTX).
        pairs: "interleaved", channels 2j and 2j + 1 (Wan, Hunyuan, LTX), or "half", channels j and j + head_dim / 2
            (LTX-2).
        order: [M] int32 or int64: place p of the results holds token ``order[p]``, as in ``x[:, order]``; a number
            outside [0, N) leaves the place empty (zeros), as :meth:`Tiling.order` has them. Without it places are
            tokens.
        out: a tensor or None for each result, like it, any strides; written and returned instead of new ones.
        impl: "native", "triton" or "reference" instead of the chosen implementation.

    Returns:
        q and k turned: [B, N, heads, head_dim], with an order [B, M, heads, head_dim]; contiguous, their dtype;
        computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit, ``pairs`` is neither, or ``order`` has another dtype.
        UnsupportedError: ``impl`` cannot run this call.

    Source: RMSNorm (arXiv:1910.07467), RoFormer (arXiv:2104.09864); neighbouring pairs as in ``wan/modules/model.py``,
    angles of heads and halves as in Diffusers' ``transformer_ltx.py`` and ``transformer_ltx2.py``.
    """
    check("qk_norm_rope", q, k, q_weight, k_weight, cos, sin, per_head, pairs)
    check_order("qk_norm_rope", order)
    args = (q, k, q_weight, k_weight, cos, sin, eps, per_head, pairs, order)
    result: tuple[Tensor, Tensor] = OP(*args, impl=impl) if out is None else OP.into(out, *args, impl=impl)
    return result


def check(
    op: str,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    per_head: bool,
    pairs: str,
) -> None:
    """Raise ValueError if this is no call of ``op``; also for the 8-bit form."""
    if pairs not in PAIRS:
        near = difflib.get_close_matches(pairs, PAIRS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{op} takes pairs 'interleaved' or 'half', not {pairs!r}{hint}")
    if q.dim() == 4 and q.shape == k.shape and q.shape[3] % 2 == 0:
        _, n, heads, head_dim = q.shape
        width = (head_dim if per_head else heads * head_dim,)
        table = (n, head_dim // 2) if cos.dim() == 2 else (n, heads, head_dim // 2)
        if q_weight.shape == width and k_weight.shape == width and cos.shape == table and sin.shape == table:
            return
    named = {"q": q, "k": k, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
    raise ValueError(
        f"{op} takes q, k [B, N, heads, head_dim] (head_dim even), q_weight, k_weight "
        f"{'[head_dim] (per_head)' if per_head else '[heads * head_dim]'} and cos, sin [N, head_dim / 2] or "
        f"[N, heads, head_dim / 2]; found {', '.join(f'{name} {list(t.shape)}' for name, t in named.items())}"
    )


def check_order(op: str, order: Tensor | None) -> None:
    """Raise ValueError if ``order`` is none of ``op``; also for the 8-bit form."""
    if order is not None and (order.dim() != 1 or order.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"{op} takes order [M] int32 or int64; found {list(order.shape)} {order.dtype}")


def _fake(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    samples, tokens, heads, head_dim = q.shape
    shape = samples, tokens if order is None else order.shape[0], heads, head_dim
    return torch.empty(shape, dtype=q.dtype, device=q.device), torch.empty(shape, dtype=k.dtype, device=k.device)


def _sizes(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
    order: Tensor | None = None,
) -> tuple[int, ...]:
    return int(per_head), int(pairs == "half"), int(cos.dim() == 3), int(order is not None)


def _triton_reasons(case: Case) -> list[str]:
    return triton_reasons(case._replace(dtype=torch.float32 if case.dtype is None else case.dtype))


OP = define(
    "qk_norm_rope",
    "(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, float eps, "
    'bool per_head=False, str pairs="interleaved", Tensor? order=None) -> (Tensor, Tensor)',
    [
        Candidate("qk_norm_rope", "native", native.qk_norm_rope, native.reasons),
        Candidate("qk_norm_rope", "triton", triton.qk_norm_rope, _triton_reasons, reluctance),
        Candidate("qk_norm_rope", "reference", reference.qk_norm_rope),
    ],
    _fake,
    sizes=_sizes,
)

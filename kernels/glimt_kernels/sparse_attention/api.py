"""sparse_attention: softmax attention over the blocks of keys that a mask lists for each block of queries."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from glimt_kernels.attention.call import call_of, dtype_of, into
from glimt_kernels.attention.call import sizes as attention_sizes
from glimt_kernels.dispatch import Candidate, Case, Op, define
from glimt_kernels.sparse_attention import gather, reference, triton
from glimt_kernels.sparse_attention.mask import BlockMask
from glimt_kernels.triton_env import DTYPES, reluctance, triton_reasons


@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor: ...
@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
    out: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(scale * q k^T) v`` in every head, a query seeing the keys of those blocks that the list of its own
    block names; with ``mask.lengths`` not the empty places behind a block's tokens.

    Tokens lie in the order of blocks: ``Tiling.to_tiles`` puts them there, or ``qk_norm_rope_8bit`` by its ``order``.
    Queries in empty places are answered like others; ``Tiling.from_tiles`` leaves them out.

    Args:
        q: [B, N, heads, head_dim] floating, N of ``mask.rows`` blocks, the last perhaps not whole. Any strides;
            head_dim not contiguous is copied first, as for k and v.
        k, v: [B, L, heads, head_dim], the dtype of q, L of ``mask.cols`` blocks; with lengths, all whole. Empty places
            must hold finite numbers: v's are multiplied by 0.
        mask: on the device of q. Its numbers are examined on a CPU only: elsewhere ``mask.check()`` does it, waiting
            for the device, and wrong ones read outside of k and v.
        scale: positive; 1 / sqrt(head_dim) if None.
        return_lse: whether to give the natural log of the sum of the exponentiated logits as well.
        out: [B, N, heads, head_dim] of q's dtype; written and returned instead of a new tensor.
        impl: "triton", "gather" or "reference" instead of the chosen implementation.

    Returns:
        [B, N, heads, head_dim], contiguous, the dtype of q; computed in float32 (float64 for float64). Zeros where the
        list is empty. With ``return_lse`` also [B, heads, N] float32 (float64), there -inf. A gradient reaches q, k, v.

    Raises:
        ValueError: shapes, dtypes or mask do not fit, or scale is not positive.
        UnsupportedError: ``impl`` cannot run this call.

    Source: attention over tiles of a video as in arXiv:2502.04507 and arXiv:2505.13389.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k, v, mask, scale, out)
    args = (q, k, v, mask.indptr, mask.indices, mask.lengths, mask.block, scale)
    if return_lse:
        pair: tuple[Tensor, Tensor] = _call(SPARSE_ATTENTION_LSE, args, out, impl)
        return pair
    result: Tensor = _call(SPARSE_ATTENTION, args, out, impl)
    return result


def _call(op: Op, args: tuple[Any, ...], out: Tensor | None, impl: str | None) -> Any:
    return op(*args, impl=impl) if out is None else op.into(out, *args, impl=impl)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, out: Tensor | None) -> None:
    wrong = []
    if not 0 < scale < math.inf:
        wrong.append(f"sparse_attention takes a positive scale; found {scale}")
    fits = q.dim() == k.dim() == 4 and v.shape == k.shape and k.shape == (q.shape[0], k.shape[1], *q.shape[2:])
    fits = fits and (out is None or out.shape == q.shape) and q.is_floating_point()
    if not fits or not all(x is None or x.dtype == q.dtype for x in (k, v, out)):
        named = {"q": q, "k": k, "v": v, "out": out}
        found = (f"{name} {list(x.shape)} {x.dtype}" for name, x in named.items() if x is not None)
        wrong.append(
            "sparse_attention takes q and out [B, N, heads, head_dim] and k, v [B, L, heads, head_dim] of one floating "
            f"dtype; found {', '.join(found)}"
        )
    else:
        wrong += _misfits(q, k, mask)
    if wrong:
        raise ValueError("; ".join(wrong))


def _misfits(q: Tensor, k: Tensor, mask: BlockMask) -> list[str]:
    """In what a mask does not fit its tensors."""
    wrong = []
    blocks = -(-q.shape[1] // mask.block), -(-k.shape[1] // mask.block)
    if (mask.rows, mask.cols) != blocks:
        wrong.append(
            f"the mask is of {mask.rows} x {mask.cols} blocks of {mask.block}, {q.shape[1]} queries and {k.shape[1]} "
            f"keys are {blocks[0]} x {blocks[1]}"
        )
    if mask.indptr.shape[0] not in (1, q.shape[0]) or mask.indptr.shape[1] not in (1, q.shape[2]):
        wrong.append(
            f"the mask is for {mask.indptr.shape[0]} samples and {mask.indptr.shape[1]} heads, 1 standing for all; "
            f"q has {q.shape[0]} and {q.shape[2]}"
        )
    if mask.lengths is not None and k.shape[1] % mask.block:
        wrong.append(f"with lengths, keys are whole blocks of {mask.block}; found {k.shape[1]} keys")
    return wrong


def _reference(*args: Any, out: Tensor | None = None) -> Tensor:
    return into(out, reference.sparse_attention(*args))


def _reference_lse(*args: Any, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    result, lse = reference.sparse_attention_lse(*args)
    return into(out, result), lse


def _fake(q: Tensor, *rest: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_lse(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    b, n, heads, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _fake(q), torch.empty((b, heads, n), dtype=dtype, device=q.device)


def _sizes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[int, ...]:
    return attention_sizes(q, k, v, 1.0, None)


def _triton_reasons(case: Case) -> list[str]:
    found = triton_reasons(case._replace(dtype=dtype_of(case)), DTYPES)
    if call_of(case).head_dim > 256:
        found.append(f"it takes a head_dim of at most 256, found {call_of(case).head_dim}")
    return found


_ARGUMENTS = "(Tensor q, Tensor k, Tensor v, Tensor indptr, Tensor indices, Tensor? lengths, int block, float scale)"
SPARSE_ATTENTION: Op = define(
    "sparse_attention",
    f"{_ARGUMENTS} -> Tensor",
    [
        Candidate("sparse_attention", "triton", triton.sparse_attention, _triton_reasons, reluctance),
        Candidate("sparse_attention", "gather", gather.sparse_attention, gather.reasons),
        Candidate("sparse_attention", "reference", _reference),
    ],
    _fake,
    differentiable=False,
    sizes=_sizes,
)
SPARSE_ATTENTION_LSE: Op = define(
    "sparse_attention_lse",
    f"{_ARGUMENTS} -> (Tensor, Tensor)",
    [
        Candidate("sparse_attention_lse", "triton", triton.sparse_attention_lse, _triton_reasons, reluctance),
        Candidate("sparse_attention_lse", "gather", gather.sparse_attention_lse, gather.reasons),
        Candidate("sparse_attention_lse", "reference", _reference_lse),
    ],
    _fake_lse,
    differentiable=False,
    sizes=_sizes,
)

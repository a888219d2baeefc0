"""quantize_blocks, quantize_channels: plain queries, keys and values as attention_8bit takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.eight_bit.reference import arch_reasons, check_dtype
from glimt_kernels.quantize_qkv import reference, triton
from glimt_kernels.triton_env import reluctance, triton_reasons

BLOCKS = (64, 128)
FP8 = torch.float8_e4m3fn


def quantize_blocks(
    x: Tensor,
    *,
    mean: Tensor | None = None,
    block: int = 128,
    dtype: torch.dtype = torch.int8,
    out: Sequence[Tensor | None] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries or keys in 8 bits: ``scale = max(amax, 2^-100) / limit`` for each block of tokens of each head, and
    ``level = (x - mean) / scale`` to the nearest, halves to even; limit 127 for int8, 448 for float8_e4m3fn.

    Args:
        x: [B, N, heads, head_dim] floating, any strides.
        mean: [B, heads, head_dim], subtracted first. The same for all keys, it changes no softmax, whatever it is.
        block: tokens that share a scale, 64 or 128.
        dtype: torch.int8 or torch.float8_e4m3fn.
        out: a tensor or None for levels and for scales, like them, any strides; written and returned instead of new
            ones.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        ``(levels, scales)``: [B, N, heads, head_dim] of ``dtype``, [B, heads, ceil(N / block)] float32; contiguous, no
        gradient. What qk_norm_rope_8bit gives without norm and rotation. The scale of a block with a value that is
        not finite is not finite.

    Raises:
        ValueError: shapes do not fit; dtype or block is none of those named.
        UnsupportedError: ``impl`` cannot run this call.
    """
    check_dtype("quantize_blocks", dtype)
    check_block("quantize_blocks", block)
    _check_x("quantize_blocks", x)
    expected = (x.shape[0], *x.shape[2:])
    if mean is not None and mean.shape != expected:
        raise ValueError(
            f"quantize_blocks takes mean [B, heads, head_dim], here {list(expected)}; found {list(mean.shape)}"
        )
    centre = None if mean is None else mean.detach()
    op, args = TO_BLOCKS, (x.detach(), centre, block, dtype)
    result: tuple[Tensor, Tensor] = op(*args, impl=impl) if out is None else op.into(out, *args, impl=impl)
    return result


def quantize_channels(
    v: Tensor, *, out: Sequence[Tensor | None] | None = None, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Values in float8_e4m3fn: ``scale = max(amax, 2^-100) / 448`` for each channel of each head, over all tokens.

    Args:
        v: [B, N, heads, head_dim] floating, any strides.
        out: a tensor or None for levels and for scales, any strides; written and returned instead of new ones. Levels
            of other strides than below are copied there.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        ``(levels, scales)``: [B, N, heads, head_dim] float8_e4m3fn, [B, heads, head_dim] float32; no gradient. In the
        memory of the levels the tokens of a channel lie together, as matrix units want them: strides
        ``(heads * head_dim * room, 1, head_dim * room, room)``, room the next multiple of 16 above N. The scale of a
        channel with a value that is not finite is not finite.

    Raises:
        ValueError: v has another shape, or is not floating.
        UnsupportedError: ``impl`` cannot run this call.
    """
    _check_x("quantize_channels", v)
    op, values = TO_CHANNELS, v.detach()
    result: tuple[Tensor, Tensor] = op(values, impl=impl) if out is None else op.into(out, values, impl=impl)
    return result


def check_block(op: str, block: int) -> None:
    """Raise ValueError unless it is one of :data:`BLOCKS`."""
    if block not in BLOCKS:
        raise ValueError(f"{op} takes block 64 or 128, not {block}")


def _check_x(op: str, x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{op} takes [B, N, heads, head_dim], floating; found {list(x.shape)} {x.dtype}")


def _fake_blocks(x: Tensor, mean: Tensor | None, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    samples, tokens, heads, _ = x.shape
    scales = torch.empty((samples, heads, (tokens + block - 1) // block), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=dtype, device=x.device), scales


def _fake_channels(v: Tensor) -> tuple[Tensor, Tensor]:
    scales = torch.empty((v.shape[0], *v.shape[2:]), dtype=torch.float32, device=v.device)
    return reference.empty_tokens_last(v, FP8), scales


def _sizes_blocks(x: Tensor, mean: Tensor | None, block: int, dtype: torch.dtype) -> tuple[int, ...]:
    return x.shape[3], int(dtype == FP8)


def _sizes_channels(v: Tensor) -> tuple[int, ...]:
    return (v.shape[3],)


def _reasons_blocks(case: Case) -> list[str]:
    head_dim, fp8 = case.sizes or (128, 0)
    return _reasons(case, head_dim, FP8 if fp8 else torch.int8)


def _reasons_channels(case: Case) -> list[str]:
    return _reasons(case, case.sizes[0] if case.sizes else 128, FP8)


def _reasons(case: Case, head_dim: int, dtype: torch.dtype) -> list[str]:
    wide = case._replace(dtype=torch.float32 if case.dtype is None else case.dtype)
    found = triton_reasons(wide) + arch_reasons(case.arch, dtype)
    if head_dim > 256:
        found.append(f"it takes a head_dim of at most 256, found {head_dim}")
    return found


TO_BLOCKS = define(
    "quantize_blocks",
    "(Tensor x, Tensor? mean, int block, ScalarType dtype) -> (Tensor, Tensor)",
    [
        Candidate("quantize_blocks", "triton", triton.quantize_blocks, _reasons_blocks, reluctance),
        Candidate("quantize_blocks", "reference", reference.quantize_blocks),
    ],
    _fake_blocks,
    differentiable=False,
    sizes=_sizes_blocks,
)
TO_CHANNELS = define(
    "quantize_channels",
    "(Tensor v) -> (Tensor, Tensor)",
    [
        Candidate("quantize_channels", "triton", triton.quantize_channels, _reasons_channels, reluctance),
        Candidate("quantize_channels", "reference", reference.quantize_channels),
    ],
    _fake_channels,
    differentiable=False,
    sizes=_sizes_channels,
)

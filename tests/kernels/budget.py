"""The error budget of NUMERICS.md, and inputs that kernels get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels import _native

ISAS = ("baseline", "v3", "v4")
# bfloat16 is left to compiling and to GPUs: Triton's interpreter computes it wrongly.
HALVES = (torch.float32, torch.float16)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    if name not in _native.isas():
        pytest.skip(f"not built for this processor: {name}")
    before = _native.isa()
    _native.select_isa(name)
    try:
        yield
    finally:
        _native.select_isa(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adversarial(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Activations as they are in trained networks, and as they should not be: last axis is channels.

    In half precision without those that it cannot hold.
    """
    found = {name: x.to(dtype) for name, x in _adversarial(*shape).items()}
    if dtype == torch.float16:
        found["denormals"] = (random(*shape, seed=1) * 1e-6).half()
    return {name: x for name, x in found.items() if x.isfinite().all()}


def _adversarial(*shape: int) -> dict[str, Tensor]:
    plain = random(*shape, seed=1)
    outliers = plain.clone()
    outliers[..., 0] *= 3000
    return {
        "plain": plain,
        "outlier channel": outliers,
        "zeros": torch.zeros(shape),
        "denormals": plain * 1e-42,
        "tiny": plain * 1e-15,
        "huge": plain * 1e15,
        "large mean": plain + 300,
        "constant": torch.full(shape, 7.3),
        "huge constant": torch.full(shape, 7.3e15),
    }


def check_budget(found: Tensor, honest: Tensor, exact: Tensor, what: str = "") -> None:
    """``found`` is at most twice as wrong against ``exact`` (float64) as ``honest``, PyTorch's own in the same dtype.

    Both in root mean square and in the largest single error. Since PyTorch may happen to be exact, half a unit in the
    last place of each value, which is what its rounding may cost, is allowed beside that: as its root mean square to
    the one, to each element its own to the other. All of it is judged, and again without the channels (last axis) that
    are far larger than most, else their roundings would hide whatever is wrong with the rest.
    """
    assert found.dtype == honest.dtype
    assert found.shape == honest.shape == exact.shape, what
    assert found.isfinite().all(), f"{what}: not finite"
    for name, channels in _parts(exact):
        half = half_ulps(exact[..., channels], found.dtype)
        mine, theirs = ((x[..., channels].double() - exact[..., channels]).abs() for x in (found, honest))
        allowed = 2 * _rms(theirs) + _rms(half)
        assert _rms(mine) <= allowed, f"{what}{name}: RMS error {_rms(mine):.3g}, allowed {allowed:.3g}"
        beyond, twice = (mine - half).max().item(), 2 * theirs.max().item()
        assert beyond <= twice, f"{what}{name}: largest error {beyond:.3g} and half a unit, PyTorch's twice {twice:.3g}"


def half_ulps(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding each of these float64 values to ``dtype`` costs at most."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact)[1] - 1
    smallest = info.smallest_normal * info.eps / 2
    return torch.where(
        exact == 0, smallest, torch.ldexp(torch.full_like(exact, info.eps / 2), exponent).clamp(smallest)
    )


def _parts(exact: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Masks of channels: of all, and of those at most 16 times as large as the middle one, if others are not."""
    if exact.numel():
        largest = exact.abs().reshape(-1, exact.shape[-1]).amax(0)
        most = largest <= 16 * largest.median()
        yield "", torch.ones_like(most)
        if not most.all():
            yield ", channels without outliers", most


def _rms(x: Tensor) -> float:
    return x.norm().item() / x.numel() ** 0.5


def attention_of(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Attention [B, N, heads, head_dim] by PyTorch: softmax as it is written in float64, else its fused kernel.

    ``mask``: to be added to the logits, or of bool, where they count; a query that sees no key gets zeros.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.dtype != torch.float64:
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.nan_to_num(0.0).transpose(1, 2)
    logits = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return (torch.softmax(logits, -1).nan_to_num(0.0) @ v).transpose(1, 2)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    empty_like, empty = torch.empty_like, torch.empty

    def fill(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: spoil(make(*args, **kwargs))

    monkeypatch.setattr(torch, "empty_like", fill(empty_like))
    monkeypatch.setattr(torch, "empty", fill(empty))


def spoil(x: Tensor) -> Tensor:
    return x.fill_(float("nan") if x.is_floating_point() else 107)

"""The error budget of NUMERICS.md, and inputs that kernels get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
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

    Both in root mean square and in the largest single error; one rounding of the largest value is allowed in any case,
    since PyTorch may happen to be exact.
    """
    assert found.dtype == honest.dtype
    assert found.shape == exact.shape, what
    assert found.isfinite().all(), f"{what}: not finite"
    floor = exact.abs().max().item() * torch.finfo(found.dtype).eps if exact.numel() else 0.0

    def errors(x: Tensor) -> tuple[float, float]:
        difference = x.double() - exact
        return difference.norm().item() / max(difference.numel(), 1) ** 0.5, difference.abs().max().item()

    for mine, theirs in zip(errors(found), errors(honest), strict=True):
        assert mine <= 2 * theirs + floor, f"{what}: error {mine:.3g}, PyTorch's {theirs:.3g}"


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors hold NaN, so that an element nobody wrote is seen."""
    empty_like, empty = torch.empty_like, torch.empty

    def fill(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: spoil(make(*args, **kwargs))

    monkeypatch.setattr(torch, "empty_like", fill(empty_like))
    monkeypatch.setattr(torch, "empty", fill(empty))


def spoil(x: Tensor) -> Tensor:
    return x.fill_(float("nan") if x.is_floating_point() else 107)

"""The budget itself: what passes is as good as PyTorch, and what is grossly wrong somewhere fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, attention_of, check_budget, half_ulps, random
from test_attention import inputs
from torch import Tensor

DTYPES = (*HALVES, torch.bfloat16)


def cases(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """(PyTorch's own, exact): a norm and attention of what the tests of the kernels give them."""
    scale, shift = random(2, 1, 67, seed=2).to(dtype), random(2, 1, 67, seed=3).to(dtype)

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.to(x.dtype)) + shift.to(x.dtype)

    found = {f"norm, {name}": (norm(x), norm(x.double())) for name, x in adversarial(2, 7, 67, dtype=dtype).items()}
    for name, qkv in inputs(19, 67, 64, dtype).items():
        found[f"attention, {name}"] = (attention_of(*qkv), attention_of(*(x.double() for x in qkv)))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorch_itself_and_the_exact_result_rounded_pass(dtype: torch.dtype) -> None:
    for name, (honest, exact) in cases(dtype).items():
        check_budget(honest, honest, exact, name)
        check_budget(exact.to(dtype), honest, exact, name)
        check_budget(exact.to(dtype), exact.to(dtype), exact, name)


# Each takes the exact result to one that is wrong somewhere.
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "negated": torch.neg,
    "twice": lambda x: 2 * x,
    "all but the largest channel zero": lambda x: torch.where(largest_channel(x), x, 0.0),
    "all but the largest channel negated": lambda x: torch.where(largest_channel(x), x, -x),
    "the middle channel zero": lambda x: torch.where(magnitudes(x) == magnitudes(x).median(), 0.0, x),
    "one element a hundredth off": lambda x: torch.where(first(x), 1.01 * x, x),
    "one token is its neighbour": lambda x: torch.cat([x[:, 1:2], x[:, 1:]], 1),
}


def magnitudes(x: Tensor) -> Tensor:
    return x.abs().flatten(0, -2).amax(0)


def largest_channel(x: Tensor) -> Tensor:
    return magnitudes(x) == magnitudes(x).max()


def first(x: Tensor) -> Tensor:
    """The largest element of the channels that are not outliers."""
    return x.abs() == torch.where(magnitudes(x) > 16 * magnitudes(x).median(), 0.0, x.abs()).max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_fails(wrong: str, dtype: torch.dtype) -> None:
    noticed = 0
    for name, (honest, exact) in cases(dtype).items():
        found = WRONG[wrong](exact).to(dtype)
        if torch.equal(found, exact.to(dtype)):  # as of zeros, and of tokens that are all alike
            continue
        with pytest.raises(AssertionError, match="error"):
            check_budget(found, honest, exact, name)
        noticed += 1
    assert noticed > 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_allowance_beside_pytorchs_error_is_half_a_unit_in_the_last_place(dtype: torch.dtype) -> None:
    exact = (random(64, 32) * 8).double()
    rounded = exact.to(dtype)
    assert ((rounded.double() - exact).abs() <= half_ulps(exact, dtype)).all()
    ones = torch.ones_like(exact)
    assert torch.equal(half_ulps(ones, dtype) * 2, ones * torch.finfo(dtype).eps)
    assert (half_ulps(0 * ones, dtype).to(dtype) == 0).all()  # half of the smallest subnormal
    assert (2 * half_ulps(0 * ones, dtype).to(torch.float64)).to(dtype).all()
    next_one = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    with pytest.raises(AssertionError, match="error"):
        check_budget(next_one, rounded, exact)


@pytest.mark.parametrize("times", [1.9, 2.2])
def test_twice_is_twice(times: float) -> None:
    """Of an error so large that what a rounding costs does not count."""
    exact = random(64, 32).double()
    for error in (1e-3 * torch.randn_like(exact), torch.where(first(exact), 0.1, 0.0)):
        honest, found = exact + error, exact - times * error
        if times < 2:
            check_budget(found.float(), honest.float(), exact)
        else:
            with pytest.raises(AssertionError, match="error"):
                check_budget(found.float(), honest.float(), exact)

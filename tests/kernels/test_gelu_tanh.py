"""gelu_tanh: within the budget, and right where the textbook formula cancels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import ISAS, adversarial, check_budget, instruction_set, poison, random

from glimt_kernels import gelu_tanh


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_within_budget(isa: str, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    with instruction_set(isa):
        for channels in (1, 7, 17, 64, 97):
            bias = random(channels, seed=1) if with_bias else None
            for name, x in adversarial(3, 5, channels).items():
                y = x if bias is None else x + bias
                exact = F.gelu(x.double() if bias is None else x.double() + bias.double(), approximate="tanh")
                found = gelu_tanh(x, bias, impl="native")
                check_budget(found, F.gelu(y, approximate="tanh"), exact, f"{channels} channels, {name}")


@pytest.mark.parametrize("isa", ISAS)
def test_small_relative_error_over_the_whole_range(isa: str) -> None:
    x = torch.linspace(-6, 9, 200_003)
    wide = x.double()
    exact = wide * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    with instruction_set(isa):
        found = gelu_tanh(x, impl="native").double()
    assert ((found - exact).abs() <= 4e-6 * exact.abs() + 1e-12).all()


def test_nothing_not_a_number_and_limits() -> None:
    assert gelu_tanh(torch.empty(0, 5), impl="native").shape == (0, 5)
    assert gelu_tanh(torch.empty(3, 0), impl="native").shape == (3, 0)
    y = gelu_tanh(torch.tensor([float("nan"), 50.0, -50.0, 0.0, float("inf")]), impl="native")
    assert y[0].isnan()
    assert y[1:].tolist() == [50.0, pytest.approx(0, abs=1e-30), 0.0, float("inf")]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bias \[4\]"):
        gelu_tanh(random(2, 5), random(4))
    with pytest.raises(ValueError, match=r"x \[\]"):
        gelu_tanh(torch.tensor(1.0))

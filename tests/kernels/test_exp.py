"""The vectorized exponential that SiLU stands on: its stated error, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from budget import ISAS, instruction_set
from torch import Tensor

from glimt_kernels import _native


def native_exp(x: Tensor) -> Tensor:
    out = torch.full_like(x, float("nan"))
    _native.exp(x.data_ptr(), out.data_ptr(), x.numel())
    return out


@pytest.mark.parametrize("isa", ISAS)
def test_relative_error_is_below_1e_7(isa: str) -> None:
    x = torch.linspace(-87.3, 88.3, 1_000_003)
    with instruction_set(isa):
        relative = (native_exp(x).double() / x.double().exp() - 1).abs().max().item()
    assert relative < 1e-7


@pytest.mark.parametrize("isa", ISAS)
def test_edges(isa: str) -> None:
    x = torch.tensor([0.0, -0.0, 1e-40, math.nan, 1e30, math.inf, -1e30, -math.inf, 1.0])
    with instruction_set(isa):
        y = native_exp(x).tolist()
    assert y[:3] == [1, 1, 1]
    assert math.isnan(y[3])
    assert y[4] == y[5] > 2e38
    assert 0 < y[6] == y[7] < 2e-38
    assert math.isclose(y[8], math.e, rel_tol=1e-7)

"""ada_norm, alone and after a gated branch: within the budget, for modulations per sample and per token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import ada_norm

EPS = 1e-6
WIDTHS = [1, 5, 31, 48, 67, 384]
# Per sample, per token, shared by all, per token but shared by samples.
MODULATIONS = [(2, 1), (2, 7), (1, 1), (1, 7)]


def honest(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_within_budget(isa: str, modulation: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    with instruction_set(isa):
        for width in WIDTHS:
            scale, shift = random(*modulation, width, seed=2), random(*modulation, width, seed=3)
            for name, x in adversarial(2, 7, width).items():
                exact = honest(x.double(), scale.double(), shift.double())
                found = ada_norm(x, scale, shift, EPS, impl="native")
                check_budget(found, honest(x, scale, shift), exact, f"width {width}, {name}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gated", [True, False])
def test_after_a_branch_within_budget(isa: str, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    with instruction_set(isa):
        for width in WIDTHS:
            scale, shift = random(2, 1, width, seed=2), random(2, 7, width, seed=3)
            gate = random(2, 1, width, seed=4) if gated else None
            residual = random(2, 7, width, seed=5)
            for name, x in adversarial(2, 7, width).items():
                normalized, stream = ada_norm(x, scale, shift, EPS, gate, residual, impl="native")
                wide = residual.double() + (x.double() if gate is None else x.double() * gate.double())
                plain = residual + (x if gate is None else x * gate)
                check_budget(stream, plain, wide, f"stream, width {width}, {name}")
                exact = honest(wide, scale.double(), shift.double())
                check_budget(normalized, honest(plain, scale, shift), exact, f"width {width}, {name}")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_triton_within_budget(modulation: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for width in WIDTHS:
        scale, shift = random(*modulation, width, seed=2).to(dtype), random(*modulation, width, seed=3).to(dtype)
        for name, x in adversarial(2, 7, width, dtype=dtype).items():
            exact = honest(x.double(), scale.double(), shift.double())
            found = ada_norm(x, scale, shift, EPS, impl="triton")
            check_budget(found, honest(x, scale, shift), exact, f"width {width}, {name}")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("gated", [True, False])
def test_triton_after_a_branch_within_budget(gated: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for width in WIDTHS:
        scale, shift, residual = (random(2, n, width, seed=n).to(dtype) for n in (1, 7, 7))
        gate = random(2, 1, width, seed=4).to(dtype) if gated else None
        for name, x in adversarial(2, 7, width, dtype=dtype).items():
            normalized, stream = ada_norm(x, scale, shift, EPS, gate, residual, impl="triton")
            plain = residual + (x if gate is None else x * gate)
            wide = residual.double() + (x.double() if gate is None else x.double() * gate.double())
            check_budget(stream, plain, wide, f"stream, width {width}, {name}")
            exact = honest(wide, scale.double(), shift.double())
            check_budget(normalized, honest(plain, scale, shift), exact, f"width {width}, {name}")


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_triton_takes_any_number_of_samples_and_strides(samples: int) -> None:
    x, table = random(samples, 40, 7).transpose(1, 2), random(max(samples, 1), 1, 6, 40, seed=1)
    shift, scale = table[:, :, 0], table[:, :, 1]
    found = ada_norm(x, scale, shift, EPS, impl="triton")
    torch.testing.assert_close(found, ada_norm(x, scale, shift, EPS, impl="reference"), rtol=1e-5, atol=1e-5)


def test_inputs_are_left_alone() -> None:
    tensors = [random(2, 5, 24, seed=i) for i in range(5)]
    copies = [tensor.clone() for tensor in tensors]
    x, scale, shift, gate, residual = tensors
    ada_norm(x, scale, shift, EPS, gate, residual, impl="native")
    assert all(map(torch.equal, tensors, copies))


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_slices_of_a_modulation_table(impl: str) -> None:
    x, residual, table = random(2, 7, 20), random(2, 7, 20, seed=1), random(2, 7, 6, 20, seed=2)
    shift, scale, gate = (part.squeeze(2) for part in table.chunk(6, dim=2)[:3])
    found = ada_norm(x, scale, shift, EPS, gate, residual, impl=impl)
    dense = [t.contiguous() for t in (scale, shift, gate)]
    expected = ada_norm(x, dense[0], dense[1], EPS, dense[2], residual, impl=impl)
    assert all(map(torch.equal, found, expected))
    assert all(tensor.is_contiguous() for tensor in found)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_channels_that_do_not_lie_together_are_copied_first(impl: str) -> None:
    x, scale = random(2, 20, 7).transpose(1, 2), random(1, 20, 7, seed=2).transpose(1, 2)
    found = ada_norm(x, scale, scale, EPS, impl=impl)
    assert torch.equal(found, ada_norm(x.contiguous(), scale.contiguous(), scale.contiguous(), EPS, impl=impl))


def test_the_default_dtype_does_not_matter() -> None:
    x, m = random(1, 3, 8), random(1, 1, 8)
    expected = ada_norm(x, m, m, EPS)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(ada_norm(x, m, m, EPS), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, m = random(2, 5, 8), random(2, 1, 8)
    with pytest.raises(ValueError, match=r"scale \[3, 1, 8\]"):
        ada_norm(x, random(3, 1, 8), m, EPS)
    with pytest.raises(ValueError, match=r"residual \[2, 4, 8\]"):
        ada_norm(x, m, m, EPS, m, x[:, :4])
    with pytest.raises(ValueError, match="together with the residual"):
        ada_norm(x, m, m, EPS, gate=m)  # type: ignore[call-overload]

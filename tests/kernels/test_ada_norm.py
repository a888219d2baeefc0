"""ada_norm, alone and after a gated branch: within the budget, for modulations per sample and per token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import (
    Case,
    UnsupportedError,
    ada_norm,
    ada_norm_8bit,
    gated_ada_norm,
    gated_ada_norm_8bit,
    select,
)

EPS = 1e-6
EIGHTS = (torch.int8, torch.float8_e4m3fn)
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


def apart(samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, residual, gate (a token's), scale (a sample's) and shift (shared by samples), each with strides of its own."""
    x, residual = random(samples, 14, 40)[:, ::2], random(samples, 7, 3, 40, seed=1)[:, :, 1]
    gate, scale = random(samples, 7, 6, 40, seed=2)[:, :, 2], random(samples, 1, 4, 40, seed=3)[:, :, 3]
    return x, residual, gate, scale, random(1, 7, 5, 40, seed=4)[:, :, 1]


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_triton_after_a_branch_takes_any_number_of_samples_and_strides(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    args = (*apart(samples), EPS)
    expected = gated_ada_norm(*args, impl="reference")
    for mine, theirs in zip(gated_ada_norm(*args, impl="triton"), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert mine.is_contiguous()
    level, row_scale, stream = gated_ada_norm_8bit(*args, impl="triton")
    level_8, row_scale_8, _ = gated_ada_norm_8bit(*args, impl="reference")
    torch.testing.assert_close(stream, expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(row_scale, row_scale_8, rtol=1e-5, atol=0)
    check_levels(level, level_8)


def check_levels(found: Tensor, expected: Tensor) -> None:
    """Equal but where the last bit of a float32 tips the rounding: hardly ever, and then by one step."""
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.13, atol=1.01)
    assert found.numel() == 0 or (found.float() != expected.float()).float().mean() < 0.01


@pytest.mark.parametrize("gated", [True, False])
def test_what_is_normalized_is_the_stream_as_it_is_stored(gated: bool) -> None:
    x, residual, gate, scale, shift = (random(2, 3, 67, seed=seed).half() for seed in range(5))
    normalized, stream = gated_ada_norm(x, residual, gate if gated else None, scale, shift, EPS, impl="triton")
    assert torch.equal(normalized, ada_norm(stream, scale, shift, EPS, impl="triton"))


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


def plain_quantization(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values after PyTorch's own rounding of rows to 8 bits."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=2**-100) / (127 if dtype == torch.int8 else 448)
    level = (x.float() / scale).round() if dtype == torch.int8 else (x.float() / scale).to(dtype).float()
    return level * scale


@pytest.mark.parametrize("eight", EIGHTS, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_8_bits_within_budget(dtype: torch.dtype, eight: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for width in (1, 48, 67):
        scale, shift = random(2, 1, width, seed=2).to(dtype), random(2, 1, width, seed=3).to(dtype)
        for name, x in adversarial(2, 3, width, dtype=dtype).items():
            level, row_scale = ada_norm_8bit(x, scale, shift, EPS, dtype=eight, impl="triton")
            exact = honest(x.double(), scale.double(), shift.double())
            plain = plain_quantization(honest(x, scale, shift), eight)
            check_budget(level.float() * row_scale[..., None], plain, exact, f"width {width}, {name}")
            assert level.dtype == eight


@pytest.mark.parametrize("eight", EIGHTS, ids=str)
@pytest.mark.parametrize("gated", [True, False])
def test_8_bits_after_a_branch_within_budget(gated: bool, eight: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for dtype in HALVES:
        scale, shift, residual = (random(2, n, 67, seed=n).to(dtype) for n in (1, 3, 3))
        gate = random(2, 1, 67, seed=4).to(dtype) if gated else None
        for name, x in adversarial(2, 3, 67, dtype=dtype).items():
            args = (x, residual, gate, scale, shift, EPS)
            level, row_scale, stream = gated_ada_norm_8bit(*args, dtype=eight, impl="triton")
            normalized, expected = gated_ada_norm(*args, impl="triton")
            assert torch.equal(stream, expected)
            wide = residual.double() + (x.double() if gate is None else x.double() * gate.double())
            exact = honest(wide, scale.double(), shift.double())
            plain = plain_quantization(honest(residual + (x if gate is None else x * gate), scale, shift), eight)
            check_budget(level.float() * row_scale[..., None], plain, exact, name)
            assert normalized.shape == level.shape


@pytest.mark.parametrize("eight", EIGHTS, ids=str)
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_8_bits_of_any_number_of_samples_and_strides(samples: int, eight: torch.dtype) -> None:
    x, table = random(samples, 40, 7).transpose(1, 2), random(max(samples, 1), 1, 6, 40, seed=1)
    args = (x, table[:, :, 1], table[:, :, 0], EPS)
    level, row_scale = ada_norm_8bit(*args, dtype=eight, impl="triton")
    expected, scales = ada_norm_8bit(*args, dtype=eight, impl="reference")
    torch.testing.assert_close(row_scale, scales, rtol=1e-5, atol=0)
    check_levels(level, expected)
    assert level.is_contiguous()
    assert row_scale.shape == (samples, 7)


@pytest.mark.parametrize("eight", EIGHTS, ids=str)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_8_bits_of_a_row_of_zeros(impl: str, eight: torch.dtype) -> None:
    zeros = torch.zeros(1, 2, 24)
    level, row_scale = ada_norm_8bit(zeros, zeros, zeros, EPS, dtype=eight, impl=impl)
    assert not level.float().any()
    limit = 127 if eight == torch.int8 else 448
    torch.testing.assert_close(row_scale * limit, torch.full((1, 2), 2.0**-100), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("eight", EIGHTS, ids=str)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_scale_of_a_row_that_is_not_finite_is_not(impl: str, eight: torch.dtype) -> None:
    x, m = random(1, 5, 24), random(1, 5, 24, seed=1)
    x[0, 1, 3] = float("nan")
    x[0, 2, 23] = -float("inf")
    m[0, 3, 5] = float("nan")
    _, row_scale = ada_norm_8bit(x, m, m, EPS, dtype=eight, impl=impl)
    assert row_scale.isfinite().tolist() == [[True, False, False, False, True]]


def test_8_bits_of_another_kind_are_refused() -> None:
    x, m = random(2, 5, 8), random(2, 1, 8)
    with pytest.raises(ValueError, match=r"not torch\.uint8"):
        ada_norm_8bit(x, m, m, EPS, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"residual \[2, 4, 8\]"):
        gated_ada_norm_8bit(x, x[:, :4], m, m, m, EPS)
    ampere = Case("cuda", torch.bfloat16, arch=80, sizes=(1,))
    with pytest.raises(UnsupportedError, match="sm_89 or newer, the device is sm_80"):
        select("gated_ada_norm_8bit", ampere, "triton")
    assert select("ada_norm_8bit", ampere._replace(arch=90)).impl == "triton"

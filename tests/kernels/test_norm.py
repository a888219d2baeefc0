"""layer_norm and rms_norm: within the budget, whatever the dtype of their weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt_kernels import Case, UnsupportedError, layer_norm, rms_norm, select

EPS = 1e-6
WIDTHS = [1, 5, 48, 67, 384]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("wide_weights", [True, False])
def test_triton_within_budget(wide_weights: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for width in WIDTHS:
        weight, bias = (random(width, seed=seed).to(torch.float32 if wide_weights else dtype) for seed in (2, 3))
        low = weight.to(dtype), bias.to(dtype)
        for name, x in adversarial(2, 3, width, dtype=dtype).items():
            exact = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), EPS)
            plain = F.layer_norm(x, (width,), *low, EPS)
            check_budget(layer_norm(x, weight, bias, EPS, impl="triton"), plain, exact, f"layer {width}, {name}")
            exact = F.rms_norm(x.double(), (width,), weight.double(), EPS)
            plain = F.rms_norm(x, (width,), low[0], EPS)
            found = rms_norm(x, weight, EPS, impl="triton")
            if exact.isfinite().all() and plain.isfinite().all():  # squares of 1e15 overflow nowhere but in float16
                check_budget(found, plain, exact, f"rms {width}, {name}")


def both(x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return layer_norm(x, weight, bias, EPS, impl=impl), rms_norm(x, weight, EPS, impl=impl)


@pytest.mark.parametrize("shape", [(0, 7, 40), (1, 7, 40), (3, 7, 40), (40,)])
def test_triton_takes_any_rows_and_strides(shape: tuple[int, ...]) -> None:
    weight, bias = random(40, seed=1), random(40, 2, seed=2)[:, 0]
    wide = random(*shape[:-1], 80)
    for x in (random(*shape), wide[..., ::2], wide[..., 3:43], random(*shape, 1).transpose(-1, 0)[0]):
        if x.shape[-1] != 40:
            continue
        for mine, right in zip(both(x, weight, bias, "triton"), both(x, weight, bias, "reference"), strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
            assert mine.is_contiguous() and mine.shape == x.shape


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_what_is_not_finite_is_not_hidden(impl: str) -> None:
    x, weight = random(4, 24), random(24, seed=1)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    for found in both(x, weight, weight, impl):
        assert not found[1].isfinite().any()
        assert not found[2].isfinite().all()
        assert found[[0, 3]].isfinite().all()


def test_a_gpu_takes_triton_in_half_precision_with_weights_in_float32() -> None:
    for op in ("layer_norm", "rms_norm"):
        assert select(op, Case("cuda", None, arch=90, sizes=(2,))).impl == "triton"
        assert select(op, Case("cuda", None, arch=90, sizes=(3,))).impl == "reference"
        with pytest.raises(UnsupportedError, match="bfloat16 wrongly"):
            select(op, Case("cpu", None, sizes=(2,)), "triton")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight and bias \[D\]; found x \[3, 8\], weight \[8\], bias \[7\]"):
        layer_norm(random(3, 8), random(8), random(7), EPS)
    with pytest.raises(ValueError, match=r"rms_norm takes .* weight \[D\]; found x \[3, 8\], weight \[3, 8\]"):
        rms_norm(random(3, 8), random(3, 8), EPS)

"""rms_norm_silu: within the budget on every instruction set, for every layout, and part of PyTorch's world."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import rms_norm_silu

# A prime, a 1, a vector and one more, a real one.
CHANNELS = [1, 3, 17, 31, 64, 97, 384]


def honest(x: Tensor, gamma: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """As Diffusers' WanRMS_norm and nn.SiLU compute it, channels last."""
    y = F.normalize(x, dim=-1) * gamma.shape[0] ** 0.5 * gamma + (0 if bias is None else bias)
    return F.silu(y) if silu else y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_within_budget(isa: str, silu: bool, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    with instruction_set(isa):
        for channels in CHANNELS:
            gamma = random(channels, seed=2)
            bias = random(channels, seed=3) if with_bias else None
            for name, x in adversarial(1, 2, 3, 5, channels).items():
                exact = honest(x.double(), gamma.double(), None if bias is None else bias.double(), silu)
                found = rms_norm_silu(x, gamma, bias, silu, impl="native")
                check_budget(found, honest(x, gamma, bias, silu), exact, f"{channels} channels, {name}")


def test_the_reference_is_the_definition() -> None:
    x, gamma = random(2, 5, 24).double(), random(24, seed=1).double()
    norm = x.square().sum(-1, keepdim=True).sqrt()
    y = x / norm * 24**0.5 * gamma
    found = rms_norm_silu(x, gamma, impl="reference")
    torch.testing.assert_close(found, y / (1 + torch.exp(-y)), rtol=1e-12, atol=1e-12)


def test_one_and_several_threads_give_the_same_bits() -> None:
    x, gamma = random(7, 1013, 48), random(48)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(rms_norm_silu(x, gamma))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_any_layout_in_contiguous_out(impl: str) -> None:
    x, gamma = random(2, 3, 4, 5, 6), random(6)
    channels_first = x.permute(0, 4, 1, 2, 3).contiguous()
    expected = rms_norm_silu(x, gamma, impl=impl)
    found = rms_norm_silu(channels_first.permute(0, 2, 3, 4, 1), gamma, impl=impl)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.is_contiguous()
    torch.testing.assert_close(rms_norm_silu(x[:, ::2], gamma, impl=impl), expected[:, ::2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0), (3, 5, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    assert rms_norm_silu(torch.empty(shape), torch.empty(shape[-1]), impl="native").shape == shape


def test_not_a_number_stays_in_its_row() -> None:
    x = random(5, 19)
    x[2, 7] = float("nan")
    y = rms_norm_silu(x, torch.ones(19), impl="native")
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_infinity_is_not_hidden() -> None:
    x = random(3, 19)
    x[1, 4] = float("inf")
    assert not rms_norm_silu(x, torch.ones(19), impl="native")[1].isfinite().all()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_the_result_is_written_where_it_is_wanted(impl: str) -> None:
    x, gamma = random(4, 5, 19), random(19, seed=1)
    room = torch.full((6, 5, 19), torch.nan)
    found = rms_norm_silu(x, gamma, out=room[1:5], impl=impl)
    assert found.data_ptr() == room[1:5].data_ptr()
    assert torch.equal(room[1:5], rms_norm_silu(x, gamma, impl=impl)) and room[[0, 5]].isnan().all()


def test_room_that_does_not_fit_is_refused() -> None:
    x, gamma = random(4, 8), random(8)
    for room in (torch.empty(4, 9), torch.empty(4, 8, dtype=torch.float64), torch.empty(8, 4).t()):
        with pytest.raises(ValueError, match="rms_norm_silu writes to contiguous"):
            rms_norm_silu(x, gamma, out=room)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma \[7\]"):
        rms_norm_silu(random(2, 8), random(7))
    with pytest.raises(ValueError, match=r"bias \[1\]"):
        rms_norm_silu(random(2, 8), random(8), random(1))

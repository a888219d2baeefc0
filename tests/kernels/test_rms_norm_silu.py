"""rms_norm_silu: within the budget on every instruction set, for every layout, and part of PyTorch's world."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import Case, UnsupportedError, rms_norm_silu, select
from glimt_kernels.rms_norm_silu import triton

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


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("silu", "with_bias"), [(True, True), (True, False), (False, False)])
def test_triton_within_budget(silu: bool, with_bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of widths in one padded piece, and in one, three and five whole ones; weights in float32 beside halves too."""
    poison(monkeypatch)
    for channels in [*CHANNELS, 48, 80]:
        gamma, bias = random(channels, seed=2), random(channels, seed=3) if with_bias else None
        for name, x in adversarial(1, 2, 3, 5, channels, dtype=dtype).items():
            exact = honest(x.double(), gamma.double(), None if bias is None else bias.double(), silu)
            plain = honest(x.float(), gamma, bias, silu).to(dtype)
            check_budget(rms_norm_silu(x, gamma, bias, silu, impl="triton"), plain, exact, f"{channels}, {name}")


def test_pieces_are_whole_where_they_can_be() -> None:
    found = {width: triton.pieces(width) for width in (96, 160, 192, 384, 256, 1024, 48, 97, 224, 24, 1)}
    assert found == {
        96: (32, 3),
        160: (32, 5),
        192: (64, 3),
        384: (128, 3),
        256: (256, 1),
        1024: (1024, 1),
        48: (16, 3),
        97: (128, 1),
        224: (256, 1),
        24: (32, 1),
        1: (1, 1),
    }


def test_triton_takes_any_rows_and_strides() -> None:
    gamma = random(40, 2, seed=1)[:, 1]
    wide = random(3, 7, 80)
    for x in (random(0, 7, 40), random(40), wide[..., ::2], wide[..., 3:43], wide[:, ::3, :40], random(40, 9).t()):
        found = rms_norm_silu(x, gamma, impl="triton")
        torch.testing.assert_close(found, rms_norm_silu(x, gamma, impl="reference"), rtol=1e-5, atol=1e-5)
        assert found.is_contiguous()


def test_a_gpu_takes_triton_whatever_the_dtype_of_the_weights() -> None:
    assert select("rms_norm_silu", Case("cuda", None, arch=90, sizes=(2,))).impl == "triton"
    assert select("rms_norm_silu", Case("cuda", None, arch=90, sizes=(3,))).impl == "reference"
    with pytest.raises(UnsupportedError, match="bfloat16 wrongly"):
        select("rms_norm_silu", Case("cpu", None, sizes=(2,)), "triton")


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


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_not_a_number_stays_in_its_row(impl: str) -> None:
    x = random(5, 19)
    x[2, 7] = float("nan")
    y = rms_norm_silu(x, torch.ones(19), impl=impl)
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_infinity_is_not_hidden(impl: str) -> None:
    x = random(3, 19)
    x[1, 4] = float("inf")
    assert not rms_norm_silu(x, torch.ones(19), impl=impl)[1].isfinite().all()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_the_result_is_written_where_it_is_wanted(impl: str) -> None:
    x, gamma = random(4, 5, 19), random(19, seed=1)
    room = torch.full((6, 5, 19), torch.nan)
    found = rms_norm_silu(x, gamma, out=room[1:5], impl=impl)
    assert found.data_ptr() == room[1:5].data_ptr()
    assert torch.equal(room[1:5], rms_norm_silu(x, gamma, impl=impl)) and room[[0, 5]].isnan().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma \[7\]"):
        rms_norm_silu(random(2, 8), random(7))
    with pytest.raises(ValueError, match=r"bias \[1\]"):
        rms_norm_silu(random(2, 8), random(8), random(1))

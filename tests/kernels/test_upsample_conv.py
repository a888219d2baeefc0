"""upsample_conv: interpolation and convolution as one, within the budget, by everyone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt_kernels import Case, dispatch, fold_upsample, select, upsample_conv
from glimt_kernels.causal_conv3d import tiles
from glimt_kernels.causal_conv3d.call import channels_last
from glimt_kernels.causal_conv3d.tiles import Tile

# (channels, N): ones, primes, beside the steps and tiles.
LAYERS = [(1, 1), (5, 7), (40, 24), (19, 48)]
# Two tiles of pixels, several steps along K, output channels in two parts.
SMALL = Tile(16, (16,), (32, 16), 4, 2)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As a model writes it in PyTorch."""
    frames = x.transpose(1, 2).flatten(0, 1)
    y = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
    return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def arguments(channels: int, n: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> tuple[Tensor, ...]:
    """x, weight [N, C, 3, 3], bias."""
    x = channels_last(random(batch, channels, 1, 3, 6, seed=1))
    weight = random(n, channels, 3, 3, seed=2) / (9 * channels) ** 0.5
    return x.to(dtype), weight.to(dtype), random(n, seed=3).to(dtype)


def double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of which these small pictures have several; shipped ones would be mostly empty, and slow to interpret."""
    monkeypatch.setattr(tiles, "tile", lambda *args, **kwargs: SMALL)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_triton_within_budget(layer: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    x, weight, bias = arguments(*layer, dtype)
    offset = bias if layer[0] > 5 else None
    found = upsample_conv(x, fold_upsample(weight), offset, impl="triton")
    check_budget(found, plain(x, weight, offset), plain(*double(x, weight, offset)))
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.usefixtures("small")
def test_triton_takes_adversarial_activations_and_any_number_of_samples() -> None:
    _, weight, bias = arguments(18, 5)
    for name, frames in {**adversarial(1, 1, 2, 3, 18), "three": random(3, 1, 2, 3, 18)}.items():
        x = frames.permute(0, 4, 1, 2, 3)
        found = upsample_conv(x, fold_upsample(weight), bias, impl="triton")
        check_budget(found, plain(x, weight, bias), plain(*double(x, weight, bias)), name)
    assert upsample_conv(x[:0], fold_upsample(weight), bias, impl="triton").shape == (0, 5, 1, 4, 6)


@pytest.mark.parametrize("arch", [80, 90])
def test_tiles_that_are_shipped_within_budget(arch: int) -> None:
    x, weight, bias = arguments(32, 96, torch.float16)
    run = dispatch.candidates("upsample_conv")[1].run
    check_budget(
        run(x, fold_upsample(weight), bias, arch=arch),
        plain(x, weight, bias),
        plain(*double(x, weight, bias)),
    )


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_reference_and_the_libraries_are_interpolation_and_convolution(layer: tuple[int, int]) -> None:
    x, weight, bias = arguments(*layer)
    exact = plain(*double(x, weight, bias))
    found = upsample_conv(x.double(), fold_upsample(weight.double()), bias.double(), impl="reference")
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    for impl in ("onednn", "aten", "reference"):
        for offset in (bias, None):
            exact = plain(*double(x, weight, offset)).float()
            found = upsample_conv(x, fold_upsample(weight), offset, impl=impl)
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5, msg=impl)
            assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_what_is_folded_is_rounded_once() -> None:
    weight = random(3, 2, 3, 3).bfloat16()
    folded = fold_upsample(weight)
    assert folded.dtype == torch.bfloat16 and folded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(folded, fold_upsample(weight.double()).bfloat16())
    assert torch.allclose(folded.double().sum((2, 3)).view(4, 3, 2), weight.double().sum((2, 3)), atol=0.05)


def test_who_runs_where() -> None:
    assert select("upsample_conv", Case("cuda", torch.bfloat16, arch=80)).impl == "triton"
    assert select("upsample_conv", Case("cuda", torch.float32, arch=80)).impl == "aten"
    assert select("upsample_conv", Case("cpu", torch.float32)).impl == "onednn"
    assert select("upsample_conv", Case("cpu", torch.bfloat16)).impl == "aten"


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, folded = random(1, 4, 2, 3, 3), random(12, 4, 2, 2)
    for wrong in (
        {"folded": random(3, 4, 3, 3)},
        {"folded": random(13, 4, 2, 2)},
        {"folded": random(12, 5, 2, 2)},
        {"bias": random(12)},
        {"bias": random(3).half()},
    ):
        with pytest.raises(ValueError, match=r"upsample_conv takes .* found x \[1, 4, 2, 3, 3\]"):
            upsample_conv(**{"x": x, "folded": folded, **wrong})

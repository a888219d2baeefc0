"""The video autoencoder, both forms, against Diffusers' on the same random weights; and chunks against the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glimt.models.wan import vae_ops
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt_kernels import fold_upsample, upsample_conv
from models import tiny

FORMS = ("t2v", "ti2v")  # Wan 2.1 (plain) and Wan 2.2 (residual, patches)
TOLERANCE = 1e-5


def ours(reference: Any) -> WanVae:
    model = WanVae(WanVaeConfig.from_dict(dict(reference.config)))
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.eval()


def clip(form: str, frames: int) -> torch.Tensor:
    size = (32, 48) if form == "t2v" else (48, 64)
    return torch.rand(1, 3, frames, *size, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def latents(model: WanVae, frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, model.config.z_dim, frames, 4, 6, generator=generator)


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_encode_equals_diffusers(form: str, frames: int) -> None:
    reference = tiny.vae(form)
    pixels = clip(form, frames)
    expected = reference.encode(pixels).latent_dist
    mean, logvar = ours(reference).encode(pixels)
    assert tiny.relative_error(mean, expected.mean) <= TOLERANCE
    assert tiny.relative_error(logvar, expected.logvar) <= TOLERANCE


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_decode_equals_diffusers(form: str, frames: int) -> None:
    reference = tiny.vae(form)
    model = ours(reference)
    z = latents(model, frames, batch=2)
    expected = reference.decode(z, return_dict=False)[0]
    found = model.decode(z)
    assert found.shape == expected.shape
    assert tiny.relative_error(found, expected) <= TOLERANCE
    assert (expected.abs() < 1).float().mean() > 0.5, "a clamped picture would prove little"


@pytest.mark.parametrize("plan", [(1, 1, 1, 1, 1), (1, 4), (2, 3), (4, 1), (3, 1, 1)])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_decoding_in_chunks_equals_decoding_the_whole(form: str, plan: tuple[int, ...]) -> None:
    model = ours(tiny.vae(form))
    z = latents(model, sum(plan))
    cache = CausalCache()
    parts = [model.decode_chunk(part, cache) for part in z.split(list(plan), dim=2)]
    assert parts[0].shape[2] == 4 * plan[0] - 3
    assert tiny.relative_error(torch.cat(parts, dim=2), model.decode_whole(z)) <= 1e-6


@pytest.mark.parametrize("plan", [(1, 4, 4, 4), (5, 8), (9, 4), (1, 12)])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_encoding_in_chunks_equals_encoding_the_whole(form: str, plan: tuple[int, ...]) -> None:
    model = ours(tiny.vae(form))
    pixels = clip(form, sum(plan))
    cache = CausalCache()
    parts = [model.encode_chunk(part, cache)[0] for part in pixels.split(list(plan), dim=2)]
    assert tiny.relative_error(torch.cat(parts, dim=2), model.encode(pixels)[0]) <= 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_later_latents_do_not_change_earlier_frames(form: str) -> None:
    model = ours(tiny.vae(form))
    z = latents(model, 4)
    other = z.clone()
    other[:, :, 3:] = 7
    with torch.no_grad():
        assert torch.equal(model.decode_whole(z)[:, :, :9], model.decode_whole(other)[:, :, :9])


@pytest.mark.parametrize("form", FORMS)
def test_decoding_is_differentiable_as_diffusers_is(form: str) -> None:
    reference = tiny.vae(form)
    model = ours(reference)
    z = latents(model, 2)
    for vae in (reference.decode(z, return_dict=False)[0], model.decode(z)):
        vae.square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.startswith(("encoder", "quant")):
            scale = expected[name].grad.norm()
            assert (parameter.grad - expected[name].grad).norm() <= 1e-4 * scale + 1e-7, name


@torch.no_grad()
def test_normalized_latents_are_those_of_the_pipelines() -> None:
    model = ours(tiny.vae("ti2v"))
    z = latents(model, 2)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (model.config.latents_mean, model.config.latents_std)
    )
    assert torch.allclose(model.normalize(z), (z - mean) / std, atol=1e-6)
    assert torch.allclose(model.denormalize(model.normalize(z)), z, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_way_of_inference_equals_the_way_of_training(form: str) -> None:
    model = ours(tiny.vae(form))
    z, pixels = latents(model, 3), clip(form, 9)
    with torch.no_grad():
        frames, mean = model.decode_whole(z), model.encode(pixels)[0]
    with torch.enable_grad():
        assert tiny.relative_error(frames, model.decode_whole(z)) <= TOLERANCE
        assert tiny.relative_error(mean, model.encode(pixels)[0]) <= TOLERANCE


def test_upsampling_folds_into_its_convolution() -> None:
    x, weight, bias = torch.randn(2, 5, 3, 4, 7), torch.randn(6, 5, 3, 3), torch.randn(6)
    exact = vae_ops.upsample_conv(x.double(), weight.double(), bias.double())
    with torch.no_grad():
        folded = vae_ops.upsample_conv(x, weight, bias)
        assert torch.equal(folded, upsample_conv(x, fold_upsample(weight), bias))
        assert tiny.relative_error(folded, exact) <= 1e-6
    assert tiny.relative_error(vae_ops.upsample_conv(x, weight, bias), exact) <= 1e-6  # gradients are on
    folded = fold_upsample(weight.double()).view(2, 2, 6, 5, 2, 2)
    assert torch.allclose(folded.sum((-1, -2)), weight.double().sum((-1, -2)).expand(2, 2, 6, 5))


@pytest.mark.parametrize(("channels", "out", "factor_t"), [(8, 8, 2), (8, 4, 2), (4, 6, 1), (12, 6, 2)])
@pytest.mark.parametrize("first", [True, False])
def test_the_unfolding_shortcut_both_ways(channels: int, out: int, factor_t: int, first: bool) -> None:
    x = torch.randn(2, channels, 3, 4, 5)
    frames = 3 * factor_t - (factor_t - 1 if first else 0)
    y = torch.randn(2, out, frames, 8, 10)
    with torch.enable_grad():
        plain = vae_ops.add_unfolded(y, x, factor_t, first=first)
    with torch.no_grad():
        assert torch.equal(vae_ops.add_unfolded(y.clone(), x, factor_t, first=first), plain)

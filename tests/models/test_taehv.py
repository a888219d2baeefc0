"""Tiny autoencoders of the TAEHV form against the published definition, with random weights of every published form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.errors import CheckpointError
from glimt.models.taehv.config import TinyConfig
from glimt.models.taehv.model import TinyAutoencoder, fold_patches, unfold_patches
from glimt.models.taehv.state import TinyState
from models import tiny
from models.published_taehv import FORMS, Published, published

TOLERANCE = 1e-5


def ours(reference: Published) -> TinyAutoencoder:
    """The engine's module with the reference's weights, its configuration read from their shapes."""
    weights = reference.state_dict()
    model = TinyAutoencoder(TinyConfig.from_shapes({name: tuple(t.shape) for name, t in weights.items()}))
    model.load_state_dict(weights, strict=True)
    return model.eval()


def clip(frames: int, channels: int, size: tuple[int, int] = (3, 4)) -> torch.Tensor:
    """[1, C, F, H, W], random."""
    return torch.randn(1, channels, frames, *size, generator=torch.Generator().manual_seed(frames))


def from_oracle(frames: torch.Tensor) -> torch.Tensor:
    """[F, C, H, W] as [1, C, F, H, W]."""
    return frames.transpose(0, 1)[None]


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_published_forms_are_read_from_their_tensors_and_decode_alike(name: str) -> None:
    form, reference = FORMS[name], published(FORMS[name])
    model = ours(reference)
    assert (model.config.latent_channels, model.config.patch_size) == (form.latents, form.patch)
    assert tuple(level.frames for level in model.config.decoder.levels) == form.grows
    assert (model.config.scale_t, model.config.scale_s) == (8 if form.grows[0] == 2 else 4, 8 * form.patch)
    latents = clip(2, form.latents)
    expected = from_oracle(reference.decode(latents[0].transpose(0, 1)))
    found = model.decode(latents)
    assert found.shape == expected.shape == (1, 3, 1 + model.config.scale_t, 24 * form.patch, 32 * form.patch)
    assert tiny.relative_error(found / 2, expected - 0.5) <= TOLERANCE
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5, "a clamped picture would prove little"
    assert expected.std() > 0.05, "a flat picture would prove little"


@pytest.mark.parametrize("frames", [1, 5, 8])
@pytest.mark.parametrize("name", ["taew2_1", "taew2_2", "taeltx_2"])
@torch.no_grad()
def test_encoding_equals_the_published(name: str, frames: int) -> None:
    reference = published(FORMS[name].small())
    side = 8 * FORMS[name].patch
    pixels = torch.rand(frames, 3, 2 * side, side)
    expected = from_oracle(reference.encode(pixels))
    found = ours(reference).encode(from_oracle(pixels) * 2 - 1)
    assert found.shape == expected.shape
    assert tiny.relative_error(found, expected) <= TOLERANCE


PLANS = st.lists(st.integers(1, 3), min_size=1, max_size=4)
SMALL = {name: ours(published(FORMS[name].small())) for name in ("taew2_1", "taew2_2", "taeltx_2", "taeltx2_3_wide")}


@settings(deadline=None, max_examples=12)
@given(name=st.sampled_from(sorted(SMALL)), plan=PLANS)
@torch.no_grad()
def test_any_split_of_a_clip_decodes_to_the_same_frames(name: str, plan: list[int]) -> None:
    model, latents = SMALL[name], clip(sum(plan), FORMS[name].latents, (1, 2))
    state = TinyState()
    parts = [model.decode_chunk(part, state) for part in latents.split(plan, dim=2)]
    assert [part.shape[2] for part in parts] == [
        n * model.config.scale_t - (model.config.trim if i == 0 else 0) for i, n in enumerate(plan)
    ]
    whole = model.decode_chunk(latents, TinyState())
    assert tiny.relative_error(torch.cat(parts, dim=2), whole) <= 1e-6


@settings(deadline=None, max_examples=12)
@given(name=st.sampled_from(sorted(SMALL)), plan=PLANS)
@torch.no_grad()
def test_any_split_of_a_clip_encodes_to_the_same_latents(name: str, plan: list[int]) -> None:
    model = SMALL[name]
    side = model.config.scale_s
    pixels = clip(sum(plan), 3, (side, side))
    state, parts = TinyState(), []
    for i, part in enumerate(pixels.split(plan, dim=2)):
        parts.append(model.encode_chunk(part, state, last=i == len(plan) - 1))
    found = torch.cat(parts, dim=2)
    assert found.shape == (1, FORMS[name].latents, -(-sum(plan) // model.config.scale_t), 1, 1)
    assert tiny.relative_error(found, model.encode(pixels)) <= 1e-6


@torch.no_grad()
def test_frames_of_one_latent_at_a_time_are_those_of_the_published_order() -> None:
    """Sequential mode keeps one frame a block, however long the clip."""
    model = SMALL["taew2_1"]
    state, sizes = TinyState(), []
    for latent in clip(6, 16).split(1, dim=2):
        model.decode_chunk(latent, state)
        sizes.append(state.size_bytes())
    assert len(set(sizes)) == 1 and all(frames.shape[2] == 1 for frames in state.frames.values())


@pytest.mark.parametrize("doublings", range(4))
@torch.no_grad()
def test_a_glimpse_is_the_published_decoder_with_upsampling_switched_off(doublings: int) -> None:
    """As the published code does it: levels without doubling, and of what grows in time the last frame's channels."""
    form = FORMS["taew2_2"].small()
    reference, latents = published(form), clip(3, form.latents)
    plain = published(replace(form, grows=(1, 1, 1)))
    weights = reference.state_dict()
    for name, slot in plain.state_dict().items():
        weights[name] = weights[name][-slot.shape[0] :] if name.endswith(".conv.weight") else weights[name]
    plain.load_state_dict(weights)
    for index, layer in enumerate(layer for layer in plain.decoder if isinstance(layer, torch.nn.Upsample)):
        layer.scale_factor = 2 if index < doublings else 1
    expected = from_oracle(plain.decode(latents[0].transpose(0, 1)))
    found = ours(reference).glimpse(latents, doublings)
    assert found.shape == expected.shape == (1, 3, 3, 3 * 2 * 2**doublings, 4 * 2 * 2**doublings)
    assert tiny.relative_error(found / 2, expected - 0.5) <= TOLERANCE


def test_decoding_is_differentiable() -> None:
    reference = published(FORMS["taehv1_5"].small())
    model, latents = ours(reference), clip(2, 32)
    reference.decode(latents[0].transpose(0, 1)).square().mean().backward()
    (model.decode(latents) / 2 + 0.5).square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.decoder.named_parameters(prefix="decoder"):
        scale = expected[name].grad.norm()
        assert (parameter.grad - expected[name].grad).norm() <= 1e-4 * scale + 1e-8, name


def test_the_way_of_training_equals_the_way_of_inference() -> None:
    model, latents = SMALL["taew2_2"], clip(3, 48)
    with torch.no_grad():
        found = model.decode(latents)
    with torch.enable_grad():
        assert tiny.relative_error(found, model.decode(latents).detach()) <= TOLERANCE


def test_a_configuration_survives_json_and_patches_fold_back() -> None:
    for model in SMALL.values():
        assert TinyConfig.from_dict(model.config.to_dict()) == model.config
    x = torch.arange(2 * 3 * 2 * 8 * 12.0).view(2, 3, 2, 8, 12)
    assert torch.equal(fold_patches(x, 4)[0, :, 0], torch.nn.functional.pixel_unshuffle(x[0, :, 0], 4))
    assert torch.equal(unfold_patches(fold_patches(x, 4), 4), x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"conv_in.weight": (1, 1, 3, 3)}, "no 'decoder.<n>.' tensors, only 'conv_in.weight'"),
        (lambda s: {k: v for k, v in s.items() if k != "decoder.1.weight"}, "'decoder.1.weight' is missing"),
        (lambda s: {**s, "decoder.22.weight": (5, 6, 3, 3)}, "5 channels"),
        (lambda s: {**s, "decoder.7.conv.weight": (17, 16, 1, 1)}, "17 channels"),
        (lambda s: {**s, "decoder.7.conv.weight": (16, 16)}, r"shape \[16, 16\]"),
        (lambda s: {k: v for k, v in s.items() if ".conv." not in k}, "no level in the decoder"),
    ],
)
def test_what_is_not_in_the_form_is_refused_with_what_is_odd(change: object, words: str) -> None:
    shapes = {name: tuple(t.shape) for name, t in published(FORMS["taew2_1"].small()).state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        TinyConfig.from_shapes(change(shapes))  # type: ignore[operator]


def test_a_decoder_alone_does_not_encode() -> None:
    shapes = {name: tuple(t.shape) for name, t in published(FORMS["taew2_1"].small()).decoder.state_dict().items()}
    model = TinyAutoencoder(TinyConfig.from_shapes({f"decoder.{name}": shape for name, shape in shapes.items()}))
    with pytest.raises(ValueError, match="no encoder"):
        model.encode(clip(5, 3, (16, 16)))

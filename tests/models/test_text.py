"""Prompts and pictures to embeddings, against transformers and Diffusers' own pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.errors import CheckpointError
from glimt.models.image import ImageEncoder, load_processor
from glimt.models.text import PromptTokenizer, TextEncoder, clean_prompt
from glimt.models.umt5 import Umt5Config, Umt5Encoder, position_buckets
from models import tiny

PROMPTS = ["A red ball rolls left over the green floor.", "", "  the sky \n &amp; an unknown w\u00f6rd ", "blue " * 511]


def encoder(reference: Any) -> Umt5Encoder:
    model = Umt5Encoder(Umt5Config.from_dict(reference.config.to_dict()))
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny.pipeline("t2v")


@pytest.fixture(scope="module")
def text(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    pipeline.tokenizer.save_pretrained(folder)
    return TextEncoder(encoder(pipeline.text_encoder), PromptTokenizer(folder))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_equal_those_of_diffusers(pipeline: Any, text: TextEncoder, prompt: str) -> None:
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    found = text.encode(prompt)
    assert found.embeds.shape == expected.shape == (1, 512, tiny.TEXT_DIM)
    assert tiny.relative_error(found.embeds, expected) <= 1e-5
    assert found.embeds[0, found.tokens.kept :].abs().max() == 0 if found.tokens.kept < 512 else True


def test_an_overlong_prompt_is_cut_as_diffusers_cuts_it_and_says_so(pipeline: Any, text: TextEncoder) -> None:
    prompt = "the ball " * 300 + "over the floor"
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    found = text.encode(prompt)
    assert tiny.relative_error(found.embeds, expected) <= 1e-5
    assert (found.tokens.kept, found.tokens.dropped) == (512, 603 + 1 - 512)
    assert found.tokens.dropped_text.startswith("ball the ball") and found.tokens.dropped_text.endswith("the floor")
    assert "512 tokens" in found.tokens.note and "92" in found.tokens.note
    assert text.encode("a ball").tokens.note == ""


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.text(st.sampled_from("ab &;<>lt#39\t\n\r\x0b\u00a0\u2019\u00e9\ufb01amp"), max_size=20)))
def test_prompts_are_cleaned_as_by_diffusers(prompt: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean_prompt(prompt) == prompt_clean(prompt)


def test_padding_is_masked_in_a_batch() -> None:
    reference = tiny.text_encoder()
    ids = torch.randint(3, 20, (2, 30))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    with torch.no_grad():
        expected = reference(ids, mask).last_hidden_state
        found = encoder(reference)(ids, mask)
    assert tiny.relative_error(found[0], expected[0]) <= 1e-5
    assert tiny.relative_error(found[1, :11], expected[1, :11]) <= 1e-5


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (12, 40), (8, 9)])
def test_buckets_of_relative_position(buckets: int, distance: int) -> None:
    reference = tiny.text_encoder().encoder.block[0].layer[0].SelfAttention
    reference.relative_attention_num_buckets, reference.relative_attention_max_distance = buckets, distance
    position = torch.arange(300)
    expected = reference._relative_position_bucket(position[None, :] - position[:, None])
    assert torch.equal(position_buckets(300, buckets, distance), expected)


def test_every_bad_value_of_the_encoders_config_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        Umt5Config.from_dict({"d_model": -1, "d_kv": 4.5, "feed_forward_proj": "relu"})
    told = str(caught.value)
    assert all(name in told for name in ("d_model", "d_kv", "feed_forward_proj", "vocab_size", "num_layers"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        PromptTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PromptTokenizer(tmp_path)


def test_image_tokens_equal_those_of_diffusers() -> None:
    from PIL import Image

    pipeline = tiny.pipeline("flf2v")
    folder = tiny.folder("flf2v")
    encoder = ImageEncoder(pipeline.image_encoder, load_processor(folder / "image_processor"))
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(2)]
    with torch.no_grad():
        expected = pipeline.encode_image([Image.fromarray(picture) for picture in pictures])
    found = encoder.encode(pictures)
    assert found.shape == (2, tiny.IMAGE_TOKENS, tiny.IMAGE_DIM)
    assert tiny.relative_error(found, expected) <= 1e-6

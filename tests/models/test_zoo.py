"""Model cards: what a checkpoint's configs say, and what the table of known models adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.errors import CheckpointError
from glimt.models import zoo
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.request import GenerateRequest
from models import tiny


def configs(variant: str) -> tuple[dict[str, Any], WanTransformerConfig, WanVaeConfig]:
    transformer = {k: list(v) if isinstance(v, tuple) else v for k, v in tiny.transformer_config(variant).items()}
    vae = tiny.WAN22_VAE if variant == "ti2v" else tiny.WAN21_VAE
    pipeline: dict[str, Any] = {"_class_name": "WanPipeline", "expand_timesteps": variant == "ti2v"}
    if variant.endswith("a14b"):
        pipeline["boundary_ratio"] = 0.875
    return pipeline, WanTransformerConfig.from_dict(transformer), WanVaeConfig.from_dict(vae)


def card(variant: str, name: str = "somewhere") -> zoo.ModelCard:
    return zoo.make_card(name, *configs(variant), shift=3.0, solver="unipc")


@pytest.mark.parametrize("variant", zoo.VARIANTS)
def test_the_variant_is_read_from_the_configs(variant: str) -> None:
    made = card(variant)
    assert made.variant == variant
    assert (made.boundary_ratio is not None) == (made.guidance_scale_2 is not None) == variant.endswith("a14b")
    assert made.expand_timesteps == (variant == "ti2v")
    assert made.size_multiple == ((32, 32) if variant == "ti2v" else (16, 16))
    assert (made.shift, made.solver) == (3.0, "unipc")


@pytest.mark.parametrize("name", zoo.KNOWN)
def test_the_defaults_of_every_known_model_are_a_legal_request(name: str) -> None:
    variant = {"FLF2V": "flf2v", "TI2V": "ti2v", "T2V-A14B": "t2v-a14b", "I2V-A14B": "i2v-a14b", "-I2V": "i2v"}
    found = next((v for part, v in variant.items() if part in name), "t2v")
    made = card(found, name)
    if name == zoo.BUNDLED:
        made = replace(made, scale_factor_spatial=8)
    images: dict[str, Any] = {}
    if found in ("i2v", "flf2v", "i2v-a14b"):
        images["image"] = _Picture()
    if found == "flf2v":
        images["last_image"] = _Picture()
    resolved = GenerateRequest("a ball", **images).resolve(made)
    assert (resolved.height, resolved.width, resolved.num_frames) == (made.height, made.width, made.num_frames)


class _Picture:
    mode, size = "RGB", (2, 1)

    def convert(self, mode: str) -> _Picture:
        return self

    def tobytes(self) -> bytes:
        return bytes(6)


def test_a_folder_named_like_a_known_model_has_its_defaults() -> None:
    folder = card("t2v", "/models/fastwan2.1-t2v-1.3b-diffusers")
    assert (folder.solver, folder.num_inference_steps, folder.guidance_scale) == ("dmd", 3, 1.0)
    assert zoo.known_defaults("my-own-model") is None


def test_a_checkpoint_may_state_its_defaults_under_any_name() -> None:
    pipeline, *rest = configs("ti2v")
    stated = {"height": 96, "width": 64, "num_frames": 17, "fps": 12.0, "num_inference_steps": 9, "guidance_scale": 2.0}
    made = zoo.make_card("checkpoint", {**pipeline, "_glimt_defaults": stated}, *rest, shift=3.0, solver="unipc")
    assert {name: getattr(made, name) for name in stated} == stated
    with pytest.raises(CheckpointError, match="_glimt_defaults"):
        zoo.make_card("checkpoint", {**pipeline, "_glimt_defaults": {"hight": 96}}, *rest, shift=3.0, solver="unipc")


def test_what_does_not_fit_together_is_named_all_at_once() -> None:
    pipeline, transformer, vae = configs("t2v")
    broken = {**pipeline, "_class_name": "WanPipelin", "boundary_ratio": 7}
    with pytest.raises(CheckpointError) as caught:
        zoo.make_card("x", broken, replace(transformer, out_channels=5), vae, shift=3.0, solver="unipc")
    assert len(caught.value.problems) == 3
    with pytest.raises(CheckpointError, match="takes 7 channels"):
        zoo.make_card("x", pipeline, replace(transformer, in_channels=7), vae, shift=3.0, solver="unipc")


def test_an_unknown_key_is_refused_with_near_names() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'num_layers'"):
        WanTransformerConfig.from_dict({"num_layer": 3, "_class_name": "WanTransformer3DModel"})
    with pytest.raises(CheckpointError) as caught:
        WanVaeConfig.from_dict({"z_dim": 4, "latents_mean": [0.0], "base_dim": True})
    assert "base_dim" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["patch_size", "num_layers", "eps", "image_dim", "qk_norm", "z_dim", "dim_mult", "latents_std", "is_residual"]


@pytest.mark.parametrize("kind", [WanTransformerConfig, WanVaeConfig])
@settings(deadline=None, max_examples=200)
@given(values=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON, max_size=4))
def test_any_json_is_either_a_config_or_a_checkpoint_error(kind: Any, values: dict[str, Any]) -> None:
    try:
        kind.from_dict(values)
    except CheckpointError as error:
        assert error.problems

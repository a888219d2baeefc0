"""Single files in the official Wan layout give the tensors of the Diffusers model they were made from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import weights_checkpoint as tiny
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from glimt.errors import CheckpointError
from glimt.weights.folder import CheckpointFolder, read_folder
from glimt.weights.official import is_official_folder, transformer_component, transformers, with_base

# Wide enough for one head of 128, as in every published model.
WIDE = {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2}
VARIANTS = {
    "t2v": WIDE,
    "i2v": {**WIDE, "in_channels": 12, "image_dim": 24, "added_kv_proj_dim": 128},
    "flf2v": {**WIDE, "in_channels": 12, "image_dim": 24, "added_kv_proj_dim": 128, "pos_embed_seq_len": 10},
}


def official_state(variant: str = "t2v") -> dict[str, Tensor]:
    return {tiny.to_official(name): t.clone() for name, t in tiny.transformer(**VARIANTS[variant]).state_dict().items()}


def write(folder: Path, state: dict[str, Tensor], prefix: str = "", name: str = "wan.safetensors") -> Path:
    save_file({prefix + key: tensor for key, tensor in state.items()}, folder / name)
    return folder / name


def read_official(path: Path, base: CheckpointFolder | None = None, *, allow_pickle: bool = False) -> CheckpointFolder:
    return with_base(path, transformers(path, allow_pickle=allow_pickle), base)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFolder:
    return read_folder(tiny.write_checkpoint(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_tensor_and_size_is_that_of_diffusers(
    tmp_path: Path, base: CheckpointFolder, variant: str, official: bool, prefix: str
) -> None:
    oracle = tiny.transformer(**VARIANTS[variant])
    state = official_state(variant) if official else oracle.state_dict()
    folder = read_official(write(tmp_path, state, prefix), base)
    config = {key: value for key, value in oracle.config.items() if not key.startswith("_")}
    found = {key: value for key, value in folder.component("transformer").config.items() if not key.startswith("_")}
    assert found == {**json.loads(json.dumps(config)), "rope_max_seq_len": 1024}
    loaded = folder.load_component("transformer").state_dict()
    assert set(loaded) == set(oracle.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in oracle.state_dict().items())
    assert folder.component("vae") is base.component("vae")
    assert folder.digest() != base.digest()


@pytest.mark.parametrize("variant", ["t2v", "i2v"])
def test_our_names_are_those_of_diffusers_own_converter(tmp_path: Path, variant: str) -> None:
    state = official_state(variant)
    file = write(tmp_path, state)
    component = transformer_component(file)
    ours = {component.renames.get(name, name): state[name] for name in state}
    theirs = convert_wan_transformer_to_diffusers(dict(state))
    assert {name: tensor.data_ptr() for name, tensor in ours.items()} == {k: t.data_ptr() for k, t in theirs.items()}


def test_shards_folders_and_pickles_of_official_files(tmp_path: Path, base: CheckpointFolder) -> None:
    oracle = tiny.transformer(**WIDE).state_dict()
    state = official_state()
    names = list(state)
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, part in enumerate((names[:9], names[9:])):
        series = f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors"
        write(shards, {name: state[name] for name in part}, name=series)
    (shards / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": 4, "eps": 1e-5}))
    assert is_official_folder(shards)
    for path in (shards, shards / "diffusion_pytorch_model-00002-of-00002.safetensors"):
        folder = read_official(path, base)
        config = folder.component("transformer").config
        assert (config["num_attention_heads"], config["attention_head_dim"], config["eps"]) == (4, 32, 1e-5)
        loaded = folder.load_component("transformer").state_dict()
        assert all(torch.equal(loaded[name], oracle[name]) for name in oracle)
    torch.save(state, tmp_path / "wan.pth")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        read_official(tmp_path / "wan.pth", base)
    folder = read_official(tmp_path / "wan.pth", base, allow_pickle=True)
    loaded = folder.load_component("transformer", allow_pickle=True).state_dict()
    assert all(torch.equal(loaded[name], oracle[name]) for name in oracle)


def official_vae_name(name: str) -> str:
    """A Wan 2.1 VAE's tensor of one residual block a level, as its official file names it."""
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{3 * int(m[1]) + int(m[2])}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{3 * int(m[1]) + 2}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle.1").replace("down_blocks", "downsamples")
    if "samples." in name or re.search(r"middle\.[02]", name):
        for ours, official in (("norm1", "0"), ("conv1", "2"), ("norm2", "3"), ("conv2", "6")):
            name = name.replace(f".{ours}.", f".residual.{official}.")
        return name.replace("conv_shortcut", "shortcut")
    name = name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1").replace("conv_in", "conv1")
    return name.replace("norm_out", "head.0").replace("conv_out", "head.2")


def test_the_vae_of_an_official_folder_is_its_own(tmp_path: Path, base: CheckpointFolder) -> None:
    write(tmp_path, official_state(), name="diffusion_pytorch_model.safetensors")
    oracle = {name: tensor + 1 for name, tensor in tiny.vae().state_dict().items()}
    write(tmp_path, {official_vae_name(k): t for k, t in oracle.items()}, name="Wan2.1_VAE.safetensors")
    loaded = read_official(tmp_path, base).load_component("vae").state_dict()
    assert set(loaded) == set(oracle)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in oracle.items())
    write(tmp_path, {}, name="another_vae.safetensors")
    with pytest.raises(CheckpointError, match="several VAEs"):
        read_official(tmp_path, base)


def test_two_experts_are_the_two_transformers(tmp_path: Path, base: CheckpointFolder) -> None:
    for noise, shift in (("high", 1.0), ("low", 2.0)):
        (tmp_path / f"{noise}_noise_model").mkdir()
        state = {name: tensor + shift for name, tensor in official_state().items()}
        write(tmp_path / f"{noise}_noise_model", state, name="diffusion_pytorch_model.safetensors")
    assert is_official_folder(tmp_path)
    folder = read_official(tmp_path, base)
    bias = tiny.transformer(**WIDE).state_dict()["proj_out.bias"]
    assert torch.equal(folder.load_component("transformer").state_dict()["proj_out.bias"], bias + 1)
    assert torch.equal(folder.load_component("transformer_2").state_dict()["proj_out.bias"], bias + 2)


def test_missing_extra_and_mis_shaped_tensors_are_named_as_in_the_file(tmp_path: Path, base: CheckpointFolder) -> None:
    state = official_state()
    del state["blocks.1.ffn.2.bias"]
    state["blocks.1.self_attn.q.bias"] = torch.zeros(5)
    state["blocks.0.surprise.weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        read_official(write(tmp_path, state), base)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "'blocks.1.ffn.net.2.bias' is missing" in text
    assert "'blocks.0.surprise.weight' is extra" in text
    assert "'blocks.1.self_attn.q.bias' has shape [5] in the file, [128] in the model" in text


def test_without_a_base_the_error_names_one_that_fits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 layers, width 128, 4 input channels; text encoder, VAE"):
        read_official(write(tmp_path, official_state()))


def test_a_base_that_does_not_fit_is_refused(tmp_path: Path, base: CheckpointFolder) -> None:
    state = {
        tiny.to_official(k): t for k, t in tiny.transformer(**WIDE, out_channels=5, text_dim=31).state_dict().items()
    }
    with pytest.raises(CheckpointError) as caught:
        read_official(write(tmp_path, state), base)
    assert "gives 5 latent channels, the VAE of" in caught.value.problems[0]
    assert "takes text of width 31" in caught.value.problems[1]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"vace_blocks.0.after_proj.bias": torch.zeros(1)}, "a VACE transformer"),
        ({"blocks.0.self_attn.q.scale_weight": torch.zeros(1)}, "a scaled-fp8 file"),
        ({"motion_encoder.fc.weight": torch.zeros(1)}, "a Wan-Animate transformer"),
    ],
)
def test_relatives_are_refused_by_name(tmp_path: Path, extra: dict[str, Tensor], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        transformer_component(write(tmp_path, official_state() | extra))


def test_other_files_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a Wan VAE, not a transformer"):
        transformer_component(write(tmp_path, {"decoder.upsamples.0.residual.0.gamma": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="neither by official nor by Diffusers' names; it has 'x'"):
        transformer_component(write(tmp_path, {"x": torch.zeros(1)}))
    state = official_state()
    state["text_embedding.0.weight"] = torch.zeros(3)
    del state["blocks.0.ffn.0.weight"]
    with pytest.raises(CheckpointError) as caught:
        transformer_component(write(tmp_path, state))
    assert len(caught.value.problems) == 2


def test_fp8_weights_are_refused_with_their_dtype(tmp_path: Path, base: CheckpointFolder) -> None:
    state = official_state()
    state["blocks.0.ffn.0.weight"] = state["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="is stored as F8_E4M3, which cannot be read"):
        read_official(write(tmp_path, state), base)

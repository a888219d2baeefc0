"""Official names of tensors against Diffusers' own converters, and the maps' reach: every tensor of every form."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from glimt.models.wan import keymap
from models import tiny

BLOCK = {ours: official for official, ours in keymap.TRANSFORMER_BLOCK.items()}
TOP = {ours: official for official, ours in keymap.TRANSFORMER.items()}
RESIDUAL = {ours: official for official, ours in keymap.VAE_RESIDUAL.items()}


def official_transformer(name: str) -> str:
    """The other direction, for tests only."""
    prefix, table = "", TOP
    if name.startswith("blocks."):
        prefix, name, table = ".".join(name.split(".")[:2]) + ".", ".".join(name.split(".")[2:]), BLOCK
    path, _, leaf = name.rpartition(".")
    return prefix + (table[name] if name in table else f"{table[path]}.{leaf}")


@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v", "ti2v"])
def test_every_tensor_of_a_transformer_has_an_official_name(variant: str) -> None:
    state = tiny.transformer(variant).state_dict()
    official = {official_transformer(name): tensor for name, tensor in state.items()}
    assert {keymap.from_official(name) for name in official} == set(state)
    converted = convert_wan_transformer_to_diffusers(dict(official))
    official.pop("img_emb.emb_pos", None)  # that converter forgets it; Diffusers' conversion script does not
    assert all(converted[keymap.from_official(name)] is tensor for name, tensor in official.items())


# The tensors of Wan2.1_VAE.pth, as its module `wan/modules/vae.py` makes them.
def official_vae21() -> list[str]:
    def conv(path: str) -> list[str]:
        return [f"{path}.weight", f"{path}.bias"]

    def residual(path: str, shortcut: bool = False) -> list[str]:
        names = [f"{path}.residual.0.gamma", f"{path}.residual.3.gamma"]
        names += conv(f"{path}.residual.2") + conv(f"{path}.residual.6")
        return names + (conv(f"{path}.shortcut") if shortcut else [])

    def middle(half: str) -> list[str]:
        names = residual(f"{half}.middle.0") + residual(f"{half}.middle.2") + [f"{half}.middle.1.norm.gamma"]
        return names + conv(f"{half}.middle.1.to_qkv") + conv(f"{half}.middle.1.proj")

    names = conv("conv1") + conv("conv2")
    for half in ("encoder", "decoder"):
        names += conv(f"{half}.conv1") + middle(half) + [f"{half}.head.0.gamma"] + conv(f"{half}.head.2")
    for index in (0, 1, 3, 4, 6, 7, 9, 10):
        names += residual(f"encoder.downsamples.{index}", shortcut=index in (3, 6))
    for index in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14):
        names += residual(f"decoder.upsamples.{index}", shortcut=index == 4)
    for path, times in (("encoder.downsamples", (2, 5, 8)), ("decoder.upsamples", (3, 7, 11))):
        names += [n for index in times for n in conv(f"{path}.{index}.resample.1")]
    for path in ("encoder.downsamples.5", "encoder.downsamples.8", "decoder.upsamples.3", "decoder.upsamples.7"):
        names += conv(f"{path}.time_conv")
    return names


def test_every_tensor_of_the_wan_21_vae_is_found_where_diffusers_puts_it() -> None:
    names = official_vae21()
    ours = {name: keymap.vae_from_official(name) for name in names}
    assert set(ours.values()) == set(tiny.vae("t2v", num_res_blocks=2).state_dict())
    converted = convert_wan_vae_to_diffusers({name: torch.tensor(i) for i, name in enumerate(names)})
    assert {name: int(tensor) for name, tensor in converted.items()} == {ours[n]: i for i, n in enumerate(names)}


def official_vae22(name: str) -> str:
    """A Wan 2.2 VAE's tensor as `wan/modules/vae2_2.py` names it."""
    parts = name.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
        word = "downsamples" if parts[1] == "down_blocks" else "upsamples"
        if parts[3] == "resnets":
            return f"{parts[0]}.{word}.{parts[2]}.{word}.{parts[4]}.{RESIDUAL[parts[5]]}.{parts[6]}"
        last = {"encoder": 2, "decoder": 3}[parts[0]]
        return f"{parts[0]}.{word}.{parts[2]}.{word}.{last}." + ".".join(parts[4:])
    if parts[1:3] == ["mid_block", "resnets"]:
        return f"{parts[0]}.middle.{2 * int(parts[3])}.{RESIDUAL[parts[4]]}.{parts[5]}"
    inverse = {ours: official for official, ours in keymap.VAE.items()}
    path, _, leaf = name.rpartition(".")
    return f"{inverse[path]}.{leaf}"


def test_every_tensor_of_a_wan_22_vae_has_an_official_name() -> None:
    names = set(tiny.vae("ti2v", num_res_blocks=2).state_dict())
    official = {official_vae22(name) for name in names}
    assert len(official) == len(names)
    assert {keymap.vae_from_official(name) for name in official} == names


@pytest.mark.parametrize("name", ["", "blocks.0", "blocks.x.norm3.weight", "vace_blocks.0.norm3.weight", "blocks.0.no"])
def test_unknown_names_have_none(name: str) -> None:
    assert keymap.from_official(name) is None
    assert keymap.vae_from_official(name) is None

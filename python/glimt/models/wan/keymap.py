"""Names of tensors in the official Wan files and in Diffusers' (which are ours), as data.

Official files hold a transformer (``diffusion_pytorch_model*.safetensors``) or a VAE (``Wan2.1_VAE``, ``Wan2.2_VAE``).
Tables map the path of a module; what follows it (``weight``, ``bias``, ``gamma``) is the same on both sides. Each
function gives our name of an official one, ``None`` for a name that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TRANSFORMER: Mapping[str, str] = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}

# Within `blocks.<n>.` of both. The official norm3 is the one before cross-attention, Diffusers' norm2.
TRANSFORMER_BLOCK: Mapping[str, str] = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
}

VAE: Mapping[str, str] = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{half}.conv1": f"{half}.conv_in" for half in ("encoder", "decoder")},
    **{f"{half}.middle.1.{name}": f"{half}.mid_block.attentions.0.{name}" for half in ("encoder", "decoder")
       for name in ("norm", "to_qkv", "proj")},
    **{f"{half}.head.0": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{f"{half}.head.2": f"{half}.conv_out" for half in ("encoder", "decoder")},
}  # fmt: skip

# Within a residual block, and within a resampler.
VAE_RESIDUAL: Mapping[str, str] = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
VAE_RESAMPLE: Mapping[str, str] = {"resample.1": "resample.1", "time_conv": "time_conv"}

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.([02])\.(.+)")
_FLAT = re.compile(r"(encoder\.downsamples|decoder\.upsamples)\.(\d+)\.((?:residual|shortcut|resample|time_conv).*)")
_NESTED = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")


def from_official(name: str) -> str | None:
    """Our name of a tensor of an official Wan transformer."""
    block = _BLOCK.fullmatch(name)
    if block:
        return _renamed(block[2], TRANSFORMER_BLOCK, f"blocks.{block[1]}.")
    return _renamed(name, TRANSFORMER)


def vae_from_official(name: str, num_res_blocks: int = 2) -> str | None:
    """Our name of a tensor of an official Wan 2.1 or 2.2 VAE.

    Wan 2.1 counts a decoder's residual blocks and upsamplers in one row; ``num_res_blocks`` (2 in all published ones)
    tells where its levels begin.
    """
    middle = _MIDDLE.fullmatch(name)
    if middle:
        return _renamed(middle[3], VAE_RESIDUAL, f"{middle[1]}.mid_block.resnets.{int(middle[2]) // 2}.")
    nested = _NESTED.fullmatch(name)
    if nested:
        return _nested(nested[1], nested[2], nested[3], nested[4])
    flat = _FLAT.fullmatch(name)
    if flat is None:
        return _renamed(name, VAE)
    index, inner = int(flat[2]), flat[3]
    if flat[1] == "encoder.downsamples":
        return _renamed(inner, {**VAE_RESIDUAL, **VAE_RESAMPLE}, f"encoder.down_blocks.{index}.")
    level, place = divmod(index, num_res_blocks + 2)
    if place == num_res_blocks + 1:
        return _renamed(inner, VAE_RESAMPLE, f"decoder.up_blocks.{level}.upsamplers.0.")
    return _renamed(inner, VAE_RESIDUAL, f"decoder.up_blocks.{level}.resnets.{place}.")


def _nested(half: str, level: str, place: str, inner: str) -> str | None:
    """Wan 2.2: levels of residual blocks, at most one resampler last in each."""
    resampler = "downsampler" if half == "encoder.down" else "upsampler"
    found = _renamed(inner, VAE_RESIDUAL, f"{half}_blocks.{level}.resnets.{place}.")
    return found or _renamed(inner, VAE_RESAMPLE, f"{half}_blocks.{level}.{resampler}.")


def _renamed(name: str, table: Mapping[str, str], prefix: str = "") -> str | None:
    """``name`` is a path in ``table``, or such a path and the name of a parameter."""
    if name in table:
        return prefix + table[name]
    path, dot, leaf = name.rpartition(".")
    return f"{prefix}{table[path]}{dot}{leaf}" if path in table else None

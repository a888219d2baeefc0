"""A tiny Wan checkpoint, written by Diffusers and transformers: what the tests of loading read back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

HEADS, HEAD_DIM = 3, 8
TRANSFORMER = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 3,
    "rope_max_seq_len": 64,
}
IMAGE_BRANCH = {"in_channels": 12, "image_dim": 24, "added_kv_proj_dim": HEADS * HEAD_DIM}
VAE = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}


def transformer(**changes: object) -> WanTransformer3DModel:
    torch.manual_seed(1)
    model = WanTransformer3DModel(**{**TRANSFORMER, **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # Diffusers leaves norms at one and the position table at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(2)
    return UMT5EncoderModel(UMT5Config(d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=3, vocab_size=50))


def image_encoder() -> CLIPVisionModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14))


def vae() -> AutoencoderKLWan:
    torch.manual_seed(4)
    return AutoencoderKLWan(**VAE)


def write_checkpoint(root: Path, *, image: bool = False) -> Path:
    """A Diffusers folder of a text-to-video model, or of an image-to-video one with the CLIP branch."""
    transformer(**(IMAGE_BRANCH if image else {})).save_pretrained(root / "transformer")
    vae().save_pretrained(root / "vae")
    text_encoder().save_pretrained(root / "text_encoder")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    ).save_pretrained(root / "scheduler")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    index: dict[str, object] = {
        "_class_name": "WanImageToVideoPipeline" if image else "WanPipeline",
        "_diffusers_version": "0.36.0",
        "boundary_ratio": None,
        "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if image:
        image_encoder().save_pretrained(root / "image_encoder")
        CLIPImageProcessor().save_pretrained(root / "image_processor")
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    (root / "model_index.json").write_text(json.dumps(index, indent=2))
    return root


def to_official(name: str) -> str:
    """The official name of a transformer's tensor: the inverse of our map, written from the official model's source."""
    name = name.replace("condition_embedder.", "")
    if name.startswith("image_embedder."):
        part = name.removeprefix("image_embedder.")
        for ours, theirs in (("norm1", "0"), ("ff.net.0.proj", "1"), ("ff.net.2", "3"), ("norm2", "4")):
            part = part.replace(ours, theirs) if part.startswith(ours) else part
        return "img_emb.emb_pos" if part == "pos_embed" else f"img_emb.proj.{part}"
    for kind in ("time", "text"):
        name = name.replace(f"{kind}_embedder.linear_1", f"{kind}_embedding.0")
        name = name.replace(f"{kind}_embedder.linear_2", f"{kind}_embedding.2")
    if name in ("scale_shift_table", "proj_out.weight", "proj_out.bias"):
        return "head.modulation" if name == "scale_shift_table" else name.replace("proj_out", "head.head")
    name = name.replace("time_proj.", "time_projection.1.").replace("scale_shift_table", "modulation")
    name = name.replace("attn1.", "self_attn.").replace("attn2.", "cross_attn.").replace("to_out.0.", "o.")
    name = name.replace("add_k_proj", "k_img").replace("add_v_proj", "v_img").replace("norm_added_k", "norm_k_img")
    name = name.replace("to_q.", "q.").replace("to_k.", "k.").replace("to_v.", "v.").replace(".norm2.", ".norm3.")
    return name.replace("ffn.net.0.proj", "ffn.0").replace("ffn.net.2", "ffn.2")

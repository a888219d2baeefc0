"""Tiny random Wan checkpoints, written by Diffusers and transformers: the independent side of every parity test.

``folder(variant)`` writes one once per test session and returns its path; ``tests/`` is on the path, so that any test
file can say ``from models import tiny``. Sizes are odd on purpose: 3 heads, 3 layers, widths that are no powers of two.
All parameters are random, the norms' too, so that a swapped or forgotten one shows.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

VARIANTS = ("t2v", "i2v", "flf2v", "t2v-a14b", "i2v-a14b", "ti2v")
TEXT_DIM, IMAGE_DIM, IMAGE_TOKENS = 24, 16, 5
WORDS = (
    *("a", "red", "green", "blue", "ball", "cube", "cone", "rolls", "left", "right"),
    *("over", "under", "the", "floor", "sky", "slowly", "and", ",", "."),
)

_HOME = tempfile.TemporaryDirectory(prefix="glimt-tiny-")

WAN21_VAE = {
    "base_dim": 6,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, -0.4],
    "latents_std": [1.1, 0.9, 1.3, 0.7],
}
WAN22_VAE = {
    **WAN21_VAE,
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 6,
    "latents_mean": [0.1, -0.2, 0.3, -0.4, 0.5, -0.6],
    "latents_std": [1.1, 0.9, 1.3, 0.7, 1.2, 0.8],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


def transformer_config(variant: str, **changes: Any) -> dict[str, Any]:
    """The constructor arguments of a tiny WanTransformer3DModel of one variant."""
    z_dim = 6 if variant == "ti2v" else 4
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 3,
        "attention_head_dim": 14,
        "in_channels": 2 * z_dim + 4 if variant.startswith(("i2v", "flf2v")) else z_dim,
        "out_channels": z_dim,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 50,
        "num_layers": 3,
    }
    if variant in ("i2v", "flf2v"):
        config |= {"image_dim": IMAGE_DIM, "added_kv_proj_dim": 42}
    if variant == "flf2v":
        config |= {"pos_embed_seq_len": 2 * IMAGE_TOKENS}
    return config | changes


def randomize(module: Any, seed: int, gain: float = 1.0) -> Any:
    """Every parameter random and of a size that keeps activations near one; returns the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma") or (parameter.ndim == 1 and name.endswith("weight")):  # the scale of a norm
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim < 2 or "table" in name or name.endswith("pos_embed"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    return module.eval()


def transformer(variant: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny Diffusers WanTransformer3DModel."""
    from diffusers import WanTransformer3DModel

    return randomize(WanTransformer3DModel(**transformer_config(variant, **changes)), seed)


def vae(variant: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny Diffusers AutoencoderKLWan: of the 2.2 form for ``ti2v``, else of the 2.1 form."""
    from diffusers import AutoencoderKLWan

    config = WAN22_VAE if variant == "ti2v" else WAN21_VAE
    return randomize(AutoencoderKLWan(**{**config, **changes}), seed, gain=1.2)


def text_encoder(seed: int = 0) -> Any:
    """A tiny transformers UMT5EncoderModel."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(WORDS) + 3, d_model=TEXT_DIM, d_kv=7, d_ff=40, num_layers=3, num_heads=3, dropout_rate=0.1,
        relative_attention_num_buckets=12, relative_attention_max_distance=40,
    )  # fmt: skip
    return randomize(UMT5EncoderModel(config), seed)


def tokenizer() -> Any:
    """A tokenizer of whole words, ending every text with ``</s>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def image_encoder(seed: int = 0) -> Any:
    """A tiny CLIP vision tower of ``IMAGE_TOKENS`` tokens."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=8,
    )  # fmt: skip
    return randomize(CLIPVisionModel(config), seed)


def pipeline(variant: str, shift: float = 3.0) -> Any:
    """A tiny Diffusers pipeline, in float32 with random weights: ``WanPipeline`` or ``WanImageToVideoPipeline``."""
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
    from transformers import CLIPImageProcessor

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    parts: dict[str, Any] = {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(1),
        "vae": vae(variant, 2),
        "scheduler": scheduler,
        "transformer": transformer(variant, 3),
    }
    if variant.endswith("a14b"):
        boundary = 0.9 if variant.startswith("i2v") else 0.875
        parts |= {"transformer_2": transformer(variant, 4), "boundary_ratio": boundary}
    if variant == "ti2v":
        parts["expand_timesteps"] = True
    if variant in ("i2v", "flf2v"):
        processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        parts |= {"image_encoder": image_encoder(5), "image_processor": processor}
    kind = WanImageToVideoPipeline if variant.startswith(("i2v", "flf2v")) else WanPipeline
    made = kind(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def tiny_decoder(variant: str, seed: int = 7) -> Path:
    """A published-form tiny decoder with random weights for the latents of one of ``VARIANTS``; a safetensors file."""
    from safetensors.torch import save_file

    from models.published_taehv import Form, published

    patch, channels = (2, 6) if variant == "ti2v" else (1, 4)
    path = Path(_HOME.name) / f"taehv-{variant}-{seed}.safetensors"
    if not path.exists():
        form = Form(channels, patch, (1, 2, 2), (2, 2, 1), (16, 12, 8, 6), encoder=10)
        save_file(published(form, seed).state_dict(), path)
    return path


@cache
def folder(variant: str) -> Path:
    """The tiny checkpoint of one of ``VARIANTS`` as a Diffusers folder; written once, gone when the process ends."""
    path = Path(_HOME.name) / variant
    pipeline(variant).save_pretrained(path)
    return path


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance, in float64."""
    difference = (found.double() - expected.double()).norm()
    return float((difference / expected.double().norm()).detach())

"""Tiny autoencoders of other families, randomly initialized, in folders as Diffusers writes them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

_HOME = tempfile.TemporaryDirectory(prefix="glimt-foreign-")
FOREIGN: dict[str, dict[str, Any]] = {
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLCogVideoX": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLTemporalDecoder": {
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "layers_per_block": 1,
    },
}


@cache
def made(name: str) -> Path:
    """The folder of one of ``FOREIGN``."""
    import diffusers

    torch.manual_seed(0)
    folder = Path(_HOME.name) / name
    model = getattr(diffusers, name)(**FOREIGN[name])
    if name == "AutoencoderKLLTXVideo":  # statistics that are not 0 and 1
        model.latents_mean.normal_()
        model.latents_std.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return folder

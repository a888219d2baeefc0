"""Write the trained parts as one checkpoint in the Diffusers layout of Wan 2.2 TI2V, in float16.

``diffusers.WanPipeline.from_pretrained(folder)`` and ``glimt.Engine.load(folder)`` open the same files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt_world.train import dit, vae
from glimt_world.train.data import scenes, to_pixels
from glimt_world.train.run import psnr
from glimt_world.train.text import new_encoder

PARTS = {
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "prediction_type": "flow_prediction",
    "predict_x0": True,
    "use_flow_sigmas": True,
    "flow_shift": dit.SHIFT,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "timestep_spacing": "linspace",
}


def load_vae(folder: Path) -> WanVae:
    """The averaged autoencoder of a training folder, with the statistics that :func:`measure` wrote beside it."""
    values = json.loads((folder / "statistics.json").read_text())
    config = dataclasses.replace(vae.CONFIG, latents_mean=tuple(values["mean"]), latents_std=tuple(values["std"]))
    model = WanVae(config)
    model.load_state_dict(_averaged(folder))
    return model.eval().requires_grad_(False)


def _averaged(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(folder / "state.pt", weights_only=True)["average"]["weights"]
    return weights


@torch.no_grad()
def measure(folder: Path, *, clips: int = 64) -> None:
    """Mean and deviation of each latent channel over ``clips`` training clips, into ``statistics.json``."""
    from glimt_world.render import render

    model = WanVae(vae.CONFIG)
    model.load_state_dict(_averaged(folder))
    source = scenes(77)
    latents = torch.cat([model.encode(to_pixels(render(next(source)))[None])[0] for _ in range(clips)])
    channels = latents.transpose(0, 1).flatten(1)
    values = {"mean": channels.mean(1).tolist(), "std": channels.std(1).tolist()}
    (folder / "statistics.json").write_text(json.dumps(values))


@torch.no_grad()
def round_trip(model: WanVae, *, clips: int = 32) -> list[float]:
    """PSNR in dB of encoding and decoding each of ``clips`` held-out clips, rounded to 8 bits as a video would be."""
    from glimt_world.render import render

    source, found = scenes(99, held_out=True), []
    for _ in range(clips):
        pixels = to_pixels(render(next(source)))[None]
        out = model.decode(model.encode(pixels)[0])
        found.append(psnr(((out + 1) * 127.5).round() / 127.5 - 1, pixels))
    return found


def _json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def _save(weights: dict[str, Tensor], path: Path) -> None:
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, path, metadata={"format": "pt"})


def _config(kind: str, config: WanTransformerConfig | WanVaeConfig) -> dict[str, Any]:
    return {"_class_name": kind, **dataclasses.asdict(config)}


def export(vae_folder: Path, dit_folder: Path, target: Path) -> None:
    """Write the checkpoint to ``target``, replacing what is there."""
    autoencoder = load_vae(vae_folder)
    weights = _averaged(dit_folder)
    parts: dict[str, dict[str, Tensor]] = {"transformer.": {}, "text_encoder.": {}}
    for name, value in weights.items():
        for prefix, part in parts.items():
            if name.startswith(prefix):
                part[name.removeprefix(prefix)] = value
    shutil.rmtree(target, ignore_errors=True)
    _json(target / "model_index.json", {"_class_name": "WanPipeline", "expand_timesteps": True, **PARTS})
    _json(target / "scheduler/scheduler_config.json", SCHEDULER)
    _json(target / "transformer/config.json", _config("WanTransformer3DModel", dit.CONFIG))
    _save(parts["transformer."], target / "transformer/diffusion_pytorch_model.safetensors")
    _json(target / "vae/config.json", _config("AutoencoderKLWan", autoencoder.config))
    _save(autoencoder.state_dict(), target / "vae/diffusion_pytorch_model.safetensors")
    encoder = new_encoder()
    encoder.load_state_dict(parts["text_encoder."])
    encoder.half().save_pretrained(target / "text_encoder")
    shutil.copytree(dit_folder / "tokenizer", target / "tokenizer")

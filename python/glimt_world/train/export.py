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
from glimt.models.zoo import BUNDLED, KNOWN
from glimt.weights.folder import read_folder
from glimt_world.render import render
from glimt_world.train.data import scenes, to_pixels
from glimt_world.train.forms import Form, form_of
from glimt_world.train.text import new_encoder

# Shift of the noise schedule, in training and as the sampler's default.
SHIFT = 3.0

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
    "flow_shift": SHIFT,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "timestep_spacing": "linspace",
}


def load_vae(folder: Path) -> WanVae:
    """The autoencoder of a checkpoint, or the averaged one of a training folder with the statistics measured there."""
    if (folder / "model_index.json").exists():
        found = read_folder(folder).load_component("vae", "cpu", torch.float32)
        assert isinstance(found, WanVae)
        return found.eval().requires_grad_(False)
    values = json.loads((folder / "statistics.json").read_text())
    model = WanVae(
        dataclasses.replace(form_of(folder).vae, latents_mean=tuple(values["mean"]), latents_std=tuple(values["std"]))
    )
    model.load_state_dict(_averaged(folder))
    return model.eval().requires_grad_(False)


def clips_of(folder: Path) -> tuple[int, int]:
    """Size and number of frames of the clips that a checkpoint, or a training folder, is for."""
    if (folder / "model_index.json").exists():
        card = read_folder(folder).card()
        return card.height, card.num_frames
    form = form_of(folder)
    return form.size, form.num_frames


def _averaged(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = state["average"]["weights"]
    return weights


@torch.no_grad()
def measure(folder: Path, *, keep: Path | None = None, clips: int = 64) -> None:
    """Mean and deviation of each latent channel, into ``statistics.json``: those of the checkpoint ``keep``, where the
    latents are still its, else over ``clips`` training clips."""
    if keep is not None:
        config = load_vae(keep).config
        values = {"mean": list(config.latents_mean), "std": list(config.latents_std)}
    else:
        model = WanVae(form_of(folder).vae)
        model.load_state_dict(_averaged(folder))
        source = scenes(77)
        latents = torch.cat([model.encode(to_pixels(render(next(source)))[None])[0] for _ in range(clips)])
        channels = latents.transpose(0, 1).flatten(1)
        values = {"mean": channels.mean(1).tolist(), "std": channels.std(1).tolist()}
    (folder / "statistics.json").write_text(json.dumps(values))


def _json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def _save(weights: dict[str, Tensor], path: Path) -> None:
    halves = {name: value.half().cpu().contiguous() for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, path, metadata={"format": "pt"})


def _config(kind: str, config: WanTransformerConfig | WanVaeConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    values.pop("clip_output", None)  # ours and not always Diffusers'; the default is meant
    return {"_class_name": kind, **values}


def write_checkpoint(
    target: Path,
    vae: WanVae,
    form: Form,
    weights: dict[str, Tensor],
    tokenizer_of: Path,
    tiny: Path | None = None,
) -> None:
    """Write a checkpoint to ``target``, replacing what is there.

    Args:
        weights: of transformer and text encoder. ``tiny``: file of a tiny decoder that goes along.
    """
    defaults = dataclasses.replace(KNOWN[BUNDLED], height=form.size, width=form.size, num_frames=form.num_frames)
    parts: dict[str, dict[str, Tensor]] = {"transformer.": {}, "text_encoder.": {}}
    for name, value in weights.items():
        for prefix, part in parts.items():
            if name.startswith(prefix):
                part[name.removeprefix(prefix)] = value
    shutil.rmtree(target, ignore_errors=True)
    index = {"_class_name": "WanPipeline", "_glimt_defaults": dataclasses.asdict(defaults), "expand_timesteps": True}
    _json(target / "model_index.json", {**index, **PARTS})
    _json(target / "scheduler/scheduler_config.json", SCHEDULER)
    _json(target / "transformer/config.json", _config("WanTransformer3DModel", form.transformer))
    _save(parts["transformer."], target / "transformer/diffusion_pytorch_model.safetensors")
    _json(target / "vae/config.json", _config("AutoencoderKLWan", vae.config))
    _save(vae.state_dict(), target / "vae/diffusion_pytorch_model.safetensors")
    encoder = new_encoder()
    encoder.load_state_dict(parts["text_encoder."])
    encoder.half().save_pretrained(target / "text_encoder")
    shutil.copytree(tokenizer_of / "tokenizer", target / "tokenizer")
    if tiny is not None:
        put_tiny_decoder(tiny, target)
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes them for their owner alone


def put_tiny_decoder(file: Path, checkpoint: Path) -> None:
    """The tiny decoder in ``file`` becomes that of ``checkpoint``. No index names it, so Diffusers passes it over."""
    folder = checkpoint / "tiny_decoder"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(file, folder / "model.safetensors")


def export(vae_folder: Path, dit_folder: Path, target: Path, tiny_folder: Path | None = None) -> None:
    """The averaged weights of two training folders as one checkpoint, with the tiny decoder of a third."""
    tiny = tiny_folder / "model.safetensors" if tiny_folder is not None else None
    write_checkpoint(target, load_vae(vae_folder), form_of(dit_folder), _averaged(dit_folder), dit_folder, tiny)

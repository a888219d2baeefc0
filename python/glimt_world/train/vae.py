"""Train the autoencoder on short clips; its statistics are measured at the end.

Loss: mean absolute error + 0.5 x mean squared error of pixels + a small Kullback-Leibler term, for smooth latents.

Tried and dropped: ``--decoder-only`` for eleven minutes from the bundled weights, on busy cores: 31.55 to 31.64 dB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_blocks import FrameAttention, ResidualBlock
from glimt_world.render import render
from glimt_world.train.data import random_clip, scenes, to_frames, to_pixels
from glimt_world.train.forms import Form, form_of
from glimt_world.train.muon import Muon, split_parameters
from glimt_world.train.run import Average, drive, learning_rate, psnr, set_rate

KL_WEIGHT = 1e-5


def loss_of(vae: WanVae, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, reconstruction) of a batch [B, 3, F, H, W]."""
    mean, logvar = vae.encode(pixels)
    mean, logvar = mean.float(), logvar.float()
    latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    out = vae.decode_whole(latents).float()
    error = out - pixels
    return error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl, out


def prepare(vae: WanVae) -> None:
    """Start from nearly deterministic latents and residual blocks that add nothing.

    With the usual start (log variance 0) the sampled noise drowns the latents, and 500 steps do not pass 19 dB.
    """
    z = vae.config.z_dim
    with torch.no_grad():
        vae.encoder.conv_out.weight *= 3
        vae.quant_conv.weight[z:] *= 0.1
        vae.quant_conv.bias[z:] = -6  # type: ignore[index]
        for module in vae.modules():
            if isinstance(module, ResidualBlock):
                _silence(module.conv2)
            elif isinstance(module, FrameAttention):
                _silence(module.proj)


def _silence(layer: nn.Conv2d | nn.Conv3d) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


# (clips, frames, crop) by turns, of like cost: short clips of whole pictures, longer ones around the things.
# Whole-length clips have to be among them, or colours drift after the frames that training has seen.
BATCHES = ((2, 9, 96), (2, 17, 64), (1, 33, 64))


def batch_at(step: int, scale: int) -> Tensor:
    """Pixels [B, 3, F, crop, crop] of one step; new scenes in every step, the same when a run is repeated."""
    clips, num_frames, crop = BATCHES[step % len(BATCHES)]
    source, rng = scenes(1000 + step), np.random.default_rng(step)
    count = clips * scale
    return torch.stack([random_clip(next(source), rng, num_frames=num_frames, crop=crop) for _ in range(count)])


class VaeTrainer:
    """The whole autoencoder, or with ``decoder_only`` the half that a transformer's latents do not depend on."""

    def __init__(self, form: Form, *, start: Path | None, decoder_only: bool, scale: int, peak: float) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.scale, self.peak = scale, peak
        self.vae = WanVae(form.vae).to(self.device)
        if start is None:
            prepare(self.vae)
        else:
            self.vae.load_state_dict(load_file(start / "vae/diffusion_pytorch_model.safetensors"))
        if decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        matrices, others = split_parameters(self.vae)
        self.muon = Muon(matrices, lr=peak)
        self.adam = torch.optim.AdamW(others, lr=0.1 * peak, betas=(0.9, 0.98), weight_decay=0.0)
        self.average = Average(self.vae, 0.999)

    def parts(self) -> dict[str, Any]:
        return {"vae": self.vae, "muon": self.muon, "adam": self.adam, "average": self.average}

    def step(self, step: int, progress: float) -> dict[str, float]:
        pixels = batch_at(step, self.scale).to(self.device).contiguous(memory_format=torch.channels_last_3d)
        rate = learning_rate(progress, self.peak)
        set_rate(self.muon, rate)
        set_rate(self.adam, 0.1 * rate)
        with torch.autocast(self.device, torch.bfloat16):
            loss, out = loss_of(self.vae, pixels)
        self.vae.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.muon.step()
        self.adam.step()
        self.average.update(self.vae)
        return {"loss": loss.item(), "psnr": psnr(out.detach(), pixels)}

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        """Held-out clips, each above its round trip."""
        from glimt.video.sheet import contact_sheet

        source = scenes(99, held_out=True)
        originals = [render(next(source)) for _ in range(4)]
        model = self.average.copy_of(self.vae)
        trips = [to_frames(model.decode(model.encode(to_pixels(clip)[None].to(self.device))[0])) for clip in originals]
        contact_sheet([clip for pair in zip(originals, trips, strict=True) for clip in pair]).save(path)


def train(
    folder: Path,
    form: str,
    *,
    minutes: float,
    start: Path | None = None,
    decoder_only: bool = False,
    scale: int = 1,
    peak: float = 0.02,
) -> None:
    """Train in ``folder``; a new run begins from fresh weights, or from those of the checkpoint ``start``."""
    trainer = VaeTrainer(form_of(folder, form), start=start, decoder_only=decoder_only, scale=scale, peak=peak)
    drive(trainer, folder, minutes=minutes)

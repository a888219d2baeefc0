"""Train the autoencoder on short clips; its statistics are measured at the end.

Loss: mean absolute error + 0.5 x mean squared error of pixels + a small Kullback-Leibler term, for smooth latents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_blocks import FrameAttention, ResidualBlock
from glimt_world.scene import Scene
from glimt_world.train.data import random_clip, scenes
from glimt_world.train.muon import Muon, split_parameters
from glimt_world.train.run import Average, Clock, Run, learning_rate, psnr, set_rate

CONFIG = WanVaeConfig(
    base_dim=32,
    decoder_base_dim=48,
    z_dim=24,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    latents_mean=(0.0,) * 24,
    latents_std=(1.0,) * 24,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    clip_output=True,
    scale_factor_temporal=4,
    scale_factor_spatial=8,
)

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
    z = CONFIG.z_dim
    with torch.no_grad():
        vae.encoder.conv_out.weight *= 3
        vae.quant_conv.weight[z:] *= 0.1
        vae.quant_conv.bias[z:] = -6  # type: ignore[index]
        for module in vae.modules():
            last = module.conv2 if isinstance(module, ResidualBlock) else None
            last = module.proj if isinstance(module, FrameAttention) else last
            if last is not None:
                last.weight.zero_()
                last.bias.zero_()  # type: ignore[union-attr]


# (clips, frames, crop) by turns, of like cost: short clips of whole pictures, longer ones around the things.
# Whole-length clips have to be among them, or colours drift after the frames that training has seen.
BATCHES = ((2, 9, 96), (2, 17, 64), (1, 33, 64))


def batch_at(step: int, source: Iterator[Scene], rng: np.random.Generator, scale: int) -> Tensor:
    """Pixels [B, 3, F, crop, crop] for one step."""
    clips, num_frames, crop = BATCHES[step % len(BATCHES)]
    count = clips * scale
    return torch.stack([random_clip(next(source), rng, num_frames=num_frames, crop=crop) for _ in range(count)])


def train(folder: Path, *, minutes: float, scale: int = 1, peak: float = 0.02) -> None:
    """Train for ``minutes`` of wall time in all (the schedule follows time, resumes count on)."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = WanVae(CONFIG).to(device)
    prepare(vae)
    matrices, others = split_parameters(vae)
    muon = Muon(matrices, lr=peak)
    adam = torch.optim.AdamW(others, lr=0.1 * peak, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(vae, 0.999)
    run = Run(folder)
    clock = Clock()
    parts = {"vae": vae, "muon": muon, "adam": adam, "average": average, "clock": clock}
    step = run.resume(parts)
    source, rng = scenes(1000 + step), np.random.default_rng(step)
    recent: list[tuple[float, float]] = []
    while clock.minutes < minutes:
        started = time.monotonic()
        pixels = batch_at(step, source, rng, scale).to(device).contiguous(memory_format=torch.channels_last_3d)
        rate = learning_rate(clock.minutes / minutes, peak)
        set_rate(muon, rate)
        set_rate(adam, 0.1 * rate)
        with torch.autocast(device, torch.bfloat16):
            loss, out = loss_of(vae, pixels)
        vae.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        muon.step()
        adam.step()
        average.update(vae)
        step += 1
        clock.minutes += (time.monotonic() - started) / 60
        recent.append((loss.item(), psnr(out.detach(), pixels)))
        if step % 30 == 0:
            mean_loss, mean_psnr = np.mean(recent, axis=0)
            run.log(step=step, minutes=round(clock.minutes, 2), loss=round(mean_loss, 5), psnr=round(mean_psnr, 2))
            recent.clear()
        if step % 250 == 0:
            run.save(step, parts)
    run.save(step, parts)

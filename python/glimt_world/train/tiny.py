"""Train a tiny decoder of the TAEHV form to give what the frozen autoencoder's own decoder gives, at a fraction of it.

Distilled: latents are those of rendered clips, targets what the full decoder makes of them (not the clips themselves,
whose details the latents have lost). Loss: mean absolute error + 0.5 x mean squared error of pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from glimt.models.taehv.config import TinyConfig, TinyHalf, TinyLevel
from glimt.models.taehv.model import MemoryBlock, TinyAutoencoder
from glimt.models.taehv.state import TinyState
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt_world.render import render
from glimt_world.round_trip import psnr_db
from glimt_world.train.data import scenes, to_frames, to_pixels
from glimt_world.train.muon import Muon, split_parameters
from glimt_world.train.run import Average, drive, learning_rate, psnr, set_rate

FILE = "model.safetensors"
WIDTHS, OUTER, BLOCKS = (64, 48), 32, 3
# (clips, latent frames; 0: all) by turns, of like cost. All begin at the beginning: so does the memory of every block.
BATCHES = ((4, 2), (1, 0), (2, 4))
Frames = npt.NDArray[np.uint8]


def form_for(vae: WanVaeConfig) -> TinyConfig:
    """The tiny decoder for the latents of ``vae``: its patches at the end, a level for each of its halvings of H, W."""
    patch = vae.patch_size or 1
    grows = [2 if temporal else 1 for temporal in reversed(vae.temperal_downsample)]
    if len(grows) != len(WIDTHS):
        raise ValueError(f"the recipe has widths for {len(WIDTHS)} levels, this autoencoder has {len(grows)}")
    levels = tuple(TinyLevel(width, BLOCKS, 0, grow) for width, grow in zip(WIDTHS, grows, strict=True))
    return TinyConfig(vae.z_dim, patch, TinyHalf(levels, OUTER))


def prepare(model: TinyAutoencoder) -> None:
    """Start from blocks that add nothing and a picture that is grey."""
    for module in model.modules():
        if isinstance(module, MemoryBlock):
            _silence(module.conv[list(module.conv)[-1]])
    head = model.decoder[list(model.decoder)[-1]]
    assert isinstance(head, nn.Conv2d) and head.bias is not None
    nn.init.constant_(head.bias, 0.5)


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Pairs:
    """The newest ``capacity`` clips: normalized latents float16 [C, f, h, w], decoded frames uint8 [F, H, W, 3]."""

    def __init__(self, vae: WanVae, *, size: int, num_frames: int, capacity: int, seed: int) -> None:
        self.vae, self.size, self.num_frames, self.capacity = vae, size, num_frames, capacity
        self.source = scenes(seed)
        self.kept: list[tuple[Tensor, Frames]] = []
        self._next = 0

    @torch.no_grad()
    def add(self) -> None:
        """Render, encode and decode one new clip; it replaces the oldest when there are enough."""
        pair = pair_of(
            self.vae, render(next(self.source), num_frames=self.num_frames, height=self.size, width=self.size)
        )
        if len(self.kept) < self.capacity:
            self.kept.append(pair)
            return
        self.kept[self._next] = pair
        self._next = (self._next + 1) % self.capacity

    def draw(self, clips: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The first ``frames`` latent frames (0: all) of random clips, and their pixels: float32, [B, C, f, h, w]."""
        rows = [self.kept[i] for i in rng.integers(len(self.kept), size=clips)]
        latents = torch.stack([latent for latent, _ in rows]).float()
        frames = frames or latents.shape[2]
        scale = self.vae.config.scale_factor_temporal
        pixels = torch.stack([to_pixels(decoded[: 1 + scale * (frames - 1)]) for _, decoded in rows])
        return latents[:, :, :frames], pixels


@torch.no_grad()
def pair_of(vae: WanVae, clip: Frames) -> tuple[Tensor, Frames]:
    """A clip's normalized latents, and the frames that the full decoder gives for them."""
    device = next(vae.parameters()).device
    latents = vae.encode(to_pixels(clip)[None].to(device))[0]
    return vae.normalize(latents)[0].half().cpu(), to_frames(vae.decode(latents))


class TinyTrainer:
    """One step after another on pairs that are made while it trains: a new clip every ``every`` steps."""

    def __init__(self, vae: WanVae, *, size: int, num_frames: int, peak: float, fill: int, every: int) -> None:
        torch.manual_seed(0)
        self.device, self.peak, self.every = next(vae.parameters()).device.type, peak, every
        self.vae, self.size = vae, size
        self.model = TinyAutoencoder(form_for(vae.config)).to(self.device)
        prepare(self.model)
        self.pairs = Pairs(vae, size=size, num_frames=num_frames, capacity=600, seed=2000)
        self.fill = fill
        matrices, others = split_parameters(self.model)
        self.muon = Muon(matrices, lr=peak)
        self.adam = torch.optim.AdamW(others, lr=0.1 * peak, betas=(0.9, 0.98), weight_decay=0.0)
        self.average = Average(self.model, 0.998)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "muon": self.muon, "adam": self.adam, "average": self.average}

    def step(self, step: int, progress: float) -> dict[str, float]:
        self._gather(step)
        clips, frames = BATCHES[step % len(BATCHES)]
        latents, pixels = self.pairs.draw(clips, frames, np.random.default_rng(step))
        pixels = pixels.to(self.device)
        rate = learning_rate(progress, self.peak)
        set_rate(self.muon, rate)
        set_rate(self.adam, 0.1 * rate)
        with torch.autocast(self.device, torch.bfloat16):
            out = self.model.decode_chunk(latents.to(self.device), TinyState())
        error = out.float() - pixels
        loss = error.abs().mean() + 0.5 * error.square().mean()
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step()
        self.adam.step()
        self.average.update(self.model)
        return {"loss": loss.item(), "psnr": psnr(out.detach(), pixels)}

    def _gather(self, step: int) -> None:
        """Pairs are not in what a resume needs: they are made anew, other ones at another step."""
        if not self.pairs.kept:
            self.pairs.source = scenes(2000 + step)
            for _ in range(self.fill):
                self.pairs.add()
        elif step % self.every == 0:
            self.pairs.add()

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        """Held-out clips as the full decoder gives them, each above the tiny one's."""
        from glimt.video.sheet import contact_sheet

        source, model, rows = scenes(99, held_out=True), self.average.copy_of(self.model), []
        for _ in range(4):
            latents, full = pair_of(self.vae, render(next(source), height=self.size, width=self.size))
            rows += [full, to_frames(model.decode(latents[None].float().to(self.device)))]
        contact_sheet(rows).save(path)


def train(
    folder: Path,
    vae: WanVae,
    *,
    size: int,
    num_frames: int,
    minutes: float,
    peak: float = 0.02,
    fill: int = 24,
    every: int = 8,
) -> TinyAutoencoder:
    """Train in ``folder`` on the latents of ``vae``; the averaged weights, there too as ``model.safetensors``.

    Args:
        size, num_frames: of the clips.
        fill: clips to begin with; ``every``: steps for each new one.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = TinyTrainer(vae.to(device), size=size, num_frames=num_frames, peak=peak, fill=fill, every=every)
    drive(trainer, folder, minutes=minutes)
    model = trainer.average.copy_of(trainer.model)
    save(model, folder / FILE)
    return model


def save(model: TinyAutoencoder, path: Path) -> None:
    """The published layout of names, float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes it for its owner alone


@torch.no_grad()
def compare(model: TinyAutoencoder, vae: WanVae, clips: int, *, size: int) -> list[tuple[float, float, float]]:
    """For held-out clips PSNR in dB: tiny decode beside full decode, tiny beside the clip, full beside the clip."""
    source, device, found = scenes(99, held_out=True), next(model.parameters()).device, []
    for _ in range(clips):
        clip = render(next(source), height=size, width=size)
        latents, full = pair_of(vae, clip)
        tiny = to_frames(model.decode(latents[None].float().to(device)))
        found.append((psnr_db(full, tiny), psnr_db(clip, tiny), psnr_db(clip, full)))
    return found


def report(found: list[tuple[float, float, float]]) -> str:
    """The means in words."""
    beside, tiny, full = np.mean(found, axis=0)
    worst = min(row[0] for row in found)
    return (
        f"{len(found)} held-out clips: tiny decode beside the full one {beside:.2f} dB (worst {worst:.2f}); "
        f"beside the clip tiny {tiny:.2f} dB, full {full:.2f} dB"
    )

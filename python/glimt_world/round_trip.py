"""``python -m glimt_world.round_trip [CHECKPOINT]``: how well the autoencoder gives held-out clips back."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from glimt.models.wan.vae import WanVae
from glimt_world.render import render
from glimt_world.train.data import scenes, to_frames, to_pixels
from glimt_world.train.export import load_vae

BUNDLED = Path(__file__).parent / "checkpoint"


@torch.no_grad()
def round_trips(vae: WanVae, clips: int, *, size: int = 96) -> list[float]:
    """PSNR in dB, over 8-bit frames, of encoding and decoding each of ``clips`` held-out clips of 33 frames."""
    source, found = scenes(99, held_out=True), []
    for _ in range(clips):
        frames = render(next(source), height=size, width=size)
        again = to_frames(vae.decode(vae.encode(to_pixels(frames)[None])[0]))
        error = float(np.mean((frames.astype(np.float32) - again) ** 2))
        found.append(10 * math.log10(255**2 / max(error, 1e-9)))
    return found


def report(found: list[float]) -> str:
    return f"round trip of {len(found)} held-out clips: mean {np.mean(found):.2f} dB, worst {min(found):.2f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m glimt_world.round_trip", description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="checkpoint or vae training folder")
    parser.add_argument("--clips", type=int, default=64)
    args = parser.parse_args()
    print(report(round_trips(load_vae(args.checkpoint), args.clips)))


if __name__ == "__main__":
    main()

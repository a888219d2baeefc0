"""``python -m glimt_world.round_trip [CHECKPOINT]``: how well the autoencoder gives held-out clips back, and with
``--judge`` how much of them can still be read: about what a transformer on it can reach. With ``--clip FILE`` it is
any video, of which it was never shown the like, a frame at a time from the file and back. With ``--tiny`` it is the
checkpoint's tiny decoder beside the full one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from glimt.models.wan.vae import WanVae
from glimt.pipeline.decode import decoded
from glimt.pipeline.encode import encode
from glimt.plan.vae import Way, plan_decode
from glimt.shapes import LatentGrid
from glimt.video.clip import open_clip
from glimt_world.render import render
from glimt_world.scene import Scene
from glimt_world.train.data import scenes, to_frames, to_pixels
from glimt_world.train.export import load_vae

BUNDLED = Path(__file__).parent / "checkpoint"


Frames = npt.NDArray[np.uint8]


@torch.no_grad()
def trips(vae: WanVae, clips: int, *, size: int = 96) -> Iterator[tuple[Scene, Frames, Frames]]:
    """Held-out scenes, their clips of 33 frames, and what encoding and decoding makes of these."""
    source = scenes(99, held_out=True)
    for _ in range(clips):
        scene = next(source)
        frames = render(scene, height=size, width=size)
        yield scene, frames, to_frames(vae.decode(vae.encode(to_pixels(frames)[None])[0]))


def psnr_db(frames: Frames, again: Frames) -> float:
    """Over 8-bit frames."""
    error = float(np.mean((frames.astype(np.float32) - again) ** 2))
    return 10 * math.log10(255**2 / max(error, 1e-9))


def round_trips(vae: WanVae, clips: int, *, size: int = 96) -> list[float]:
    """PSNR in dB of each of ``clips`` round trips."""
    return [psnr_db(frames, again) for _, frames, again in trips(vae, clips, size=size)]


def file_trip(vae: WanVae, path: Path, frames: int | None) -> str:
    """One video through the autoencoder, compared frame by frame."""
    clip = open_clip(path)
    count = clip.frames if frames is None else frames
    latents = encode(vae, clip.read(count))
    layout = plan_decode(vae.config, LatentGrid(*latents.shape[1:]), 4, 2**63, way=Way.FRAMES)
    found: list[float] = []
    given = clip.read(count)
    for chunk in decoded(vae, latents, layout):
        found += [psnr_db(next(given)[0], frame) for frame in chunk]
    return f"round trip of {count} frames of {clip.path.name}: mean {np.mean(found):.2f} dB, worst {min(found):.2f} dB"


def tiny_trips(checkpoint: Path, vae: WanVae, clips: int) -> str:
    """The checkpoint's tiny decoder beside ``vae``, on held-out clips."""
    from glimt.models.taehv.model import TinyAutoencoder
    from glimt.weights.folder import TINY, read_folder
    from glimt_world.train import tiny

    model = read_folder(checkpoint).load_component(TINY, "cpu", torch.float32)
    assert isinstance(model, TinyAutoencoder)
    return tiny.report(tiny.compare(model, vae, clips, size=96))


def report(found: list[float]) -> str:
    return f"round trip of {len(found)} held-out clips: mean {np.mean(found):.2f} dB, worst {min(found):.2f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m glimt_world.round_trip", description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED, help="checkpoint or vae training folder")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--judge", action="store_true", help="also read what came back, as the judge reads clips")
    parser.add_argument("--tiny", action="store_true", help="the tiny decoder beside the full one instead")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="a video in place of clips of the world")
    parser.add_argument("--frames", type=int, help="only the first so many of it: 4 n + 1")
    args = parser.parse_args()
    vae = load_vae(args.checkpoint)
    if args.clip is not None:
        print(file_trip(vae, args.clip, args.frames))
        return
    if args.tiny:
        print(tiny_trips(args.checkpoint, vae, args.clips))
        return
    if not args.judge:
        print(report(round_trips(vae, args.clips)))
        return
    from glimt_world.judge.sweep import Tally
    from glimt_world.judge.verdict import table

    tally, found = Tally(), []
    for index, (scene, frames, again) in enumerate(trips(vae, args.clips)):
        found.append(psnr_db(frames, again))
        tally.add(tally.judge(again, scene), f"scene {index}")
    print(report(found))
    print(table(tally.rates()))


if __name__ == "__main__":
    main()

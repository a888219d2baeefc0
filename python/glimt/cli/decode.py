"""``glimt decode``: latents become an mp4."""

from __future__ import annotations

import argparse
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from glimt.check import check_decoder
from glimt.cli import interruption
from glimt.cli.asking import Problems, engine_config, opened
from glimt.cli.outcome import Outcome
from glimt.cli.progress import duration, progress
from glimt.env import peak_rss_bytes
from glimt.errors import CheckpointError, RequestError
from glimt.shapes import LatentGrid

if TYPE_CHECKING:
    from glimt.engine import Engine
    from glimt.plan import DecodePlan
    from glimt.video.latents import Latents


def run(namespace: argparse.Namespace) -> Outcome:
    """Decode, and say where the video is and how it was made."""
    from glimt.video import mp4
    from glimt.video.latents import load_latents

    problems = Problems()
    with problems.gathered():
        mp4.check_crf(namespace.crf)
    with problems.gathered():
        check_decoder(namespace.decoder)
    with problems.gathered():
        mp4.check_writable(namespace.output)
    latents = None
    with problems.gathered():
        latents = load_latents(namespace.file)
    problems.raise_any()
    assert latents is not None
    engine = opened(namespace, namespace.model, namespace.base, engine_config(namespace))
    if namespace.vae is not None:
        result = _decode_foreign(namespace, engine, latents)
        return Outcome(f"{result['path']}: {_made(result)}; by {result['decoder']}, the whole clip at once", result)
    layout = engine.plan_decode(latents.tensor.shape, decoder=namespace.decoder)
    fps = Fraction(str(namespace.fps)) if namespace.fps else latents.fps or Fraction(str(engine.card.fps))
    result = _decode(namespace, engine, latents, layout, fps)
    return Outcome(
        f"{result['path']}: {_made(result)}; {layout}"
        + ("; by the tiny decoder (class lossy)" if namespace.decoder == "tiny" else ""),
        result,
    )


def _made(result: dict[str, Any]) -> str:
    return (
        f"{result['frames']} frames of {result['width']}x{result['height']} at {result['fps']:g} fps, "
        f"{duration(result['seconds'])}, peak {result['peak_rss_bytes'] / 1e6:.0f} MB resident"
    )


def _decode(
    namespace: argparse.Namespace, engine: Engine, latents: Latents, layout: DecodePlan, fps: Fraction
) -> dict[str, Any]:
    from glimt.video.mp4 import VideoWriter, check_size

    card, shape = engine.card, latents.tensor.shape
    clip = LatentGrid(*shape[1:]).pixels(card.scale_factor_temporal, card.scale_factor_spatial)
    check_size(clip.height, clip.width)
    began = time.perf_counter()
    with progress(namespace.quiet) as show:
        notes = _belonging(engine, latents, anyway=namespace.anyway)
        for note in notes:
            show.say(f"note: {note}")
        tensor = latents.tensor if latents.normalized is not False else engine.normalized(latents.tensor)
        show.begin("decode", "frames")
        with VideoWriter(namespace.output, fps, clip.height, clip.width, crf=namespace.crf) as writer:
            for chunk in engine.decode(tensor, fps=float(fps), decoder=namespace.decoder):
                interruption.check()
                writer.write(chunk.frames)
                show.update(writer.num_frames, clip.frames)
        show.end()
    return {
        "path": str(writer.path),
        "frames": writer.num_frames,
        "height": clip.height,
        "width": clip.width,
        "fps": float(fps),
        "sha256": writer.sha256,
        "decode": layout.to_dict(),
        "decoder": namespace.decoder,
        "quality": "lossy" if namespace.decoder == "tiny" else engine.config.quality,
        "planned_bytes": layout.peak_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": time.perf_counter() - began,
        "notes": notes,
    }


def _decode_foreign(namespace: argparse.Namespace, engine: Engine, latents: Latents) -> dict[str, Any]:
    """By an autoencoder of Diffusers."""
    from glimt.pipeline.foreign import ForeignVae
    from glimt.video.mp4 import VideoWriter, check_size

    began, fps = time.perf_counter(), Fraction(str(namespace.fps)) if namespace.fps else latents.fps
    if fps is None:
        raise RequestError("--fps: the file does not say how fast its clip is; give frames per second")
    if latents.vae_digest is not None and not namespace.anyway:
        theirs = latents.model or "another model"
        raise CheckpointError(f"these latents are of {theirs}; --anyway decodes them with {namespace.vae} all the same")
    with progress(namespace.quiet) as show:
        vae = ForeignVae.open(namespace.vae, engine.device, engine.dtype)
        tensor = latents.tensor if latents.normalized is not False else vae.normalized(latents.tensor)
        show.begin("decode", "frames")
        (chunk,) = engine.decode(
            tensor, fps=float(fps), memory_budget=namespace.memory_budget, decoder=namespace.decoder, vae=vae
        )
        count, height, width, _ = chunk.frames.shape
        check_size(height, width)
        with VideoWriter(namespace.output, fps, height, width, crf=namespace.crf) as writer:
            writer.write(chunk.frames)
            show.update(writer.num_frames, count)
        show.end()
    return {
        "path": str(writer.path),
        "frames": count,
        "height": height,
        "width": width,
        "fps": float(fps),
        "sha256": writer.sha256,
        "decoder": vae.name,
        "vae": str(vae.folder),
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": time.perf_counter() - began,
        "notes": [],
    }


def _belonging(engine: Engine, latents: Latents, *, anyway: bool) -> list[str]:
    """What is not known of the latents. CheckpointError where they are of another autoencoder, unless ``anyway``."""
    notes = []
    if latents.normalized is None:
        notes.append("the file does not say whether its latents are normalized; they are taken as such")
    if latents.vae_digest is None:
        notes.append(f"the file does not say whose its latents are; they are taken as those of {engine.card.name}")
    elif latents.vae_digest != engine.vae_digest():
        theirs = latents.model or "another model"
        problem = f"these latents are of {theirs}, whose autoencoder is not that of {engine.card.name}"
        if not anyway:
            raise CheckpointError(f"{problem}; say which with --model, or --anyway to decode them all the same")
        notes.append(problem)
    return notes

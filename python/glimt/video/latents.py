"""Latents in a file: one safetensors tensor, and beside it what they belong to.

    "latents": float32 [1, C, f, h, w], normalized (zero mean, unit variance per channel: the transformer's scale)
    metadata:  {"format": "glimt-latents/1", "model": name, "vae_digest": SHA-256, "fps": "30000/1001",
                "normalized": "true", "source": file name}

Files of other programs that hold a single tensor of this shape are read too; what they do not say is ``None``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from glimt.errors import CheckpointError, RequestError
from glimt.video import files

if TYPE_CHECKING:
    from torch import Tensor

LATENTS_FORMAT = "glimt-latents/1"
SUFFIXES = (".safetensors",)


@dataclass(frozen=True)
class Latents:
    """Latents [1, C, f, h, w] and what is known of them.

    Attributes:
        model: name of the model whose autoencoder made them. ``vae_digest``: of that autoencoder.
        fps: of the clip.
        normalized: whether they are in the transformer's scale, else in the autoencoder's own.
        source: name of the file they were made from.
    """

    tensor: Tensor = field(repr=False)
    model: str | None = None
    vae_digest: str | None = None
    fps: Fraction | None = None
    normalized: bool | None = None
    source: str | None = None


def save_latents(path: files.StrPath, latents: Latents) -> Path:
    """Write a file, whole or not at all. Raises OutputError."""
    from safetensors.torch import save_file

    target = files.resolve_target(path, SUFFIXES)
    said = {
        "format": LATENTS_FORMAT,
        "model": latents.model,
        "vae_digest": latents.vae_digest,
        "fps": None if latents.fps is None else str(latents.fps),
        "normalized": None if latents.normalized is None else str(latents.normalized).lower(),
        "source": latents.source,
    }
    with files.temporary_beside(target) as temporary:
        try:
            save_file({"latents": latents.tensor.contiguous()}, temporary, {k: v for k, v in said.items() if v})
        except OSError as error:
            raise files.as_output_error(path, error) from error
        files.publish(temporary, target)
    return target


def load_latents(path: str | os.PathLike[str]) -> Latents:
    """Read a file. Raises RequestError that says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    from glimt.weights.reader import open_files

    name = os.fspath(path)
    if not Path(name).is_file():
        raise RequestError(f"latents: {name}: there is no such file")
    try:
        source = open_files([Path(name)])
        with safe_open(name, "pt") as file:
            said = file.metadata() or {}
    except CheckpointError as error:
        raise RequestError(*(f"latents: {problem}" for problem in error.problems)) from error
    except (SafetensorError, OSError) as error:
        raise RequestError(f"latents: {name}: {error}") from error
    names = list(source.entries)
    if len(names) != 1:
        raise RequestError(f"latents: {name} holds {len(names)} tensors; it takes one, [1, C, f, h, w]")
    tensor = source.tensor(names[0]).float()
    tensor = tensor[None] if tensor.ndim == 4 else tensor
    if tensor.ndim != 5 or tensor.shape[0] != 1 or not tensor.numel():
        raise RequestError(f"latents: {name} holds {list(tensor.shape)}; it takes one clip, [1, C, f, h, w]")
    if not bool(tensor.isfinite().all()):
        raise RequestError(f"latents: {name} holds NaN or infinity")
    try:
        fps = Fraction(said["fps"]) if "fps" in said else None
        normalized = {"true": True, "false": False}[said["normalized"]] if "normalized" in said else None
    except (ValueError, ZeroDivisionError, KeyError) as error:
        raise RequestError(f"latents: {name}: its metadata are damaged ({error})") from error
    return Latents(tensor, said.get("model"), said.get("vae_digest"), fps, normalized, said.get("source"))

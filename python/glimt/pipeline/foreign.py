"""Latents of other families, decoded by Diffusers' own autoencoders: the optional extra ``glimt[diffusers]``.

The frames are theirs. A clip is decoded whole, in memory that no plan foresees; the native autoencoders are streams.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimt.errors import CheckpointError, MissingDependencyError, RequestError
from glimt.pipeline.events import Frames
from glimt.pipeline.guard import check_frames
from glimt_kernels import frames_to_uint8

_SVD = "AutoencoderKLTemporalDecoder"  # takes frames as a batch
CLASSES = ("AutoencoderKLHunyuanVideo", "AutoencoderKLLTXVideo", "AutoencoderKLCogVideoX", _SVD)


@dataclass(frozen=True)
class ForeignVae:
    """An autoencoder of Diffusers, ready to decode. Made by :meth:`open`."""

    folder: Path
    name: str
    module: Any

    @classmethod
    def open(cls, folder: str | os.PathLike[str], device: str, dtype: str) -> ForeignVae:
        """The autoencoder in ``folder``: its ``config.json`` and safetensors, as Diffusers writes them.

        Raises:
            CheckpointError: no such folder, a class that is not one of ``CLASSES``, or weights that do not load.
            MissingDependencyError: Diffusers is not installed.
        """
        path = Path(folder).expanduser()
        name = _class_of(path)
        try:
            import diffusers
        except ImportError as error:
            install = "pip install 'glimt[diffusers]'"
            raise MissingDependencyError("diffusers", f"decode with {name}", install) from error
        kind, settings = getattr(diffusers, name), {"local_files_only": True, "use_safetensors": True}
        try:
            module = kind.from_pretrained(str(path), torch_dtype=getattr(torch, dtype), **settings)
        except Exception as error:  # whatever another library raises
            raise CheckpointError(f"{path}: Diffusers cannot load this {name}: {error}") from error
        return cls(path, name, module.to(device).eval())

    @property
    def channels(self) -> int:
        """Of its latents."""
        return int(self.module.config.latent_channels)

    def check(self, latents: Tensor) -> None:
        """Raise RequestError unless these are latents [1, C, f, h, w] for it."""
        shape = tuple(latents.shape)
        if len(shape) != 5 or shape[:2] != (1, self.channels) or min(shape) < 1:
            raise RequestError(
                f"latents: {list(shape)} are not for {self.name} in {self.folder}, "
                f"which takes [1, {self.channels}, f, h, w]"
            )

    def normalized(self, latents: Tensor) -> Tensor:
        """Latents of its own scale in that of its transformer, which :meth:`decode` takes."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Frames [n, H, W, 3] uint8 of normalized latents [1, C, f, h, w].

        Raises:
            RequestError: latents of another shape. NonFiniteError: pixels that are not finite.
        """
        self.check(latents)
        latents = latents.to(self.module.device)
        mean, std = self._statistics(latents)
        pixels = self._pixels((latents * std + mean).to(self.module.dtype))
        check_frames(pixels, 0)
        frames: Frames = frames_to_uint8(pixels.float())[0].cpu().numpy()
        return frames

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of its latents, by channel where it has them so."""
        factor = float(self.module.config.scaling_factor)
        held = dict(self.module.named_buffers())
        mean, std = (held.get(f"latents_{name}") for name in ("mean", "std"))
        if mean is None or std is None:
            return latents.new_zeros(()), latents.new_full((), 1 / factor)
        mean, std = (value.to(latents).view(1, -1, 1, 1, 1) for value in (mean, std))
        return mean, std / factor

    def _pixels(self, z: Tensor) -> Tensor:
        """[1, 3, F, H, W]."""
        if self.name == _SVD:
            frames = self.module.decode(z[0].transpose(0, 1), num_frames=z.shape[2]).sample
            return frames.transpose(0, 1)[None]
        if getattr(self.module.config, "timestep_conditioning", False):  # of LTX: 0, nothing is left to denoise
            return self.module.decode(z, z.new_zeros(1)).sample
        return self.module.decode(z).sample


def _class_of(folder: Path) -> str:
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: no folder of an autoencoder as Diffusers writes it (config.json and safetensors): {error}"
        ) from error
    if name == "AutoencoderKLWan":
        raise CheckpointError(f"{folder}: {name} is native; give its model as --model (or to Engine.open)")
    if name not in CLASSES:
        raise CheckpointError(f"{folder}: {name!r} is not one of {', '.join(CLASSES)}, which decode by Diffusers")
    return str(name)

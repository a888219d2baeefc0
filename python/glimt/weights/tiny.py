"""Tiny decoders of the TAEHV form: in a checkpoint's own folder ``tiny_decoder/``, or a published file given beside it.

No config tells what they are made of; the shapes of their tensors do (:mod:`glimt.models.taehv.config`).
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from glimt.errors import CheckpointError
from glimt.models.taehv.config import TinyConfig
from glimt.models.wan.config import WanVaeConfig
from glimt.weights.folder import TINY, CheckpointFolder, Component, misfits
from glimt.weights.header import other_format
from glimt.weights.reader import open_files


def with_tiny(folder: CheckpointFolder, file: Path, *, allow_pickle: bool = False) -> CheckpointFolder:
    """``folder`` with the tiny decoder in ``file``, instead of its own if it has one.

    Raises:
        CheckpointError: everything that is wrong with it: no such file, a pickle without ``allow_pickle``, tensors that
            are not in the TAEHV form, missing, extra or misshapen, or one for other latents than the VAE's.
    """
    return folder.with_components([read_tiny(file, folder.component("vae"), allow_pickle=allow_pickle)])


def read_tiny(file: Path, vae: Component, *, allow_pickle: bool = False) -> Component:
    """The tiny decoder in ``file`` for the latents of ``vae``. Raises CheckpointError, as :func:`with_tiny`."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; a tiny decoder is one safetensors file of the TAEHV form")
    entries = open_files((file,), allow_pickle=allow_pickle).entries
    try:
        config = TinyConfig.from_shapes({name: entry.shape for name, entry in entries.items()})
    except CheckpointError as error:
        raise CheckpointError(*(f"{file}: {problem}" for problem in error.problems)) from error
    mapped = not other_format(file)
    found = Component(
        TINY,
        "TinyAutoencoder",
        file,
        MappingProxyType(config.to_dict()),
        (file,),
        MappingProxyType(dict(entries) if mapped else {}),
    )
    if problems := [*_unfit(file, config, WanVaeConfig.from_dict(vae.config)), *misfits(found)]:
        raise CheckpointError(*problems)
    return found


def _unfit(file: Path, tiny: TinyConfig, vae: WanVaeConfig) -> list[str]:
    pairs = (
        ("latent channels", tiny.latent_channels, vae.z_dim),
        ("frames for each latent frame", tiny.scale_t, vae.scale_factor_temporal),
        ("pixels a side for each latent", tiny.scale_s, vae.scale_factor_spatial),
    )
    return [
        f"{file}: is for {its} {what}, the model's autoencoder has {theirs}"
        for what, its, theirs in pairs
        if its != theirs
    ]

"""The models glimt knows by name, and what a request may take for granted about a model.

A :class:`ModelCard` is made from a checkpoint's configs (shapes, scale factors, experts, schedule) and, for what no
config says (size, length, guidance, steps), from a row of ``KNOWN``, else from its variant's row in ``FALLBACK``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from glimt.errors import CheckpointError
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.suggest import did_you_mean

BUNDLED = "glimt-world"
VARIANTS = ("t2v", "i2v", "flf2v", "ti2v", "t2v-a14b", "i2v-a14b")

# Rows of the UMT5 embeddings that Wan was trained on, padding included.
TEXT_TOKENS = 512


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it says nothing. ``shift`` and ``solver`` of ``None``: the checkpoint's scheduler's."""

    height: int
    width: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    shift: float | None = None
    solver: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """A loaded checkpoint as requests see it: its variant, its grids, its defaults.

    Attributes:
        name: as it was asked for: the bundled model's name, a Hub id, or the folder's name.
        family: ``wan``.
        variant: one of ``VARIANTS``.
        height, width, num_frames, fps, num_inference_steps, guidance_scale, guidance_scale_2, shift, solver: the
            defaults of a request's fields of those names.
        scale_factor_temporal, scale_factor_spatial: pixels (frames) per latent.
        z_dim: channels of a latent.
        patch: latents per token (t, y, x).
        text_tokens: rows of text embedding, padding included; a longer prompt is cut.
        expand_timesteps: timesteps differ between tokens (Wan 2.2 TI2V).
        boundary_ratio: share of the schedule's timesteps below which the second expert takes over, or ``None``.
    """

    name: str
    variant: str
    height: int
    width: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    shift: float
    solver: str
    scale_factor_temporal: int
    scale_factor_spatial: int
    z_dim: int
    patch: tuple[int, int, int]
    text_tokens: int = TEXT_TOKENS
    expand_timesteps: bool = False
    boundary_ratio: float | None = None
    family: str = "wan"

    @property
    def size_multiple(self) -> tuple[int, int]:
        """Height and width of a request are multiples of these, in pixels."""
        return self.scale_factor_spatial * self.patch[1], self.scale_factor_spatial * self.patch[2]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


_480P = (480, 832, 81, 16.0)
_720P = (720, 1280, 81, 16.0)

# Sources: the model cards on the Hub, Wan's `generate.py` and config modules, FastVideo's scripts.
KNOWN: dict[str, Defaults] = {
    BUNDLED: Defaults(96, 96, 33, 12.0, 20, 4.5),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Defaults(*_480P, 50, 5.0, shift=3.0),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Defaults(*_720P, 50, 5.0, shift=5.0),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": Defaults(*_480P, 50, 5.0, shift=3.0),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": Defaults(*_720P, 50, 5.0, shift=5.0),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": Defaults(*_720P, 50, 5.5, shift=16.0),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Defaults(*_720P, 40, 4.0, 3.0, shift=12.0),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": Defaults(*_480P, 40, 3.5, 3.5, shift=5.0),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Defaults(704, 1280, 121, 24.0, 50, 5.0, shift=5.0),
    "FastVideo/FastWan2.1-T2V-1.3B-Diffusers": Defaults(448, 832, 61, 16.0, 3, 1.0, shift=8.0, solver="dmd"),
    "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers": Defaults(704, 1280, 121, 24.0, 3, 1.0, shift=8.0, solver="dmd"),
}

FALLBACK: dict[str, Defaults] = {
    "t2v": Defaults(*_480P, 50, 5.0),
    "i2v": Defaults(*_480P, 50, 5.0),
    "flf2v": Defaults(*_720P, 50, 5.5),
    "ti2v": Defaults(704, 1280, 121, 24.0, 50, 5.0),
    "t2v-a14b": Defaults(*_720P, 40, 4.0, 3.0),
    "i2v-a14b": Defaults(*_480P, 40, 3.5, 3.5),
}


def known_defaults(name: str) -> Defaults | None:
    """The row of ``KNOWN`` for a Hub id, or for a folder named like one (case does not count)."""
    wanted = name.replace("\\", "/").rstrip("/").lower()
    for known, defaults in KNOWN.items():
        if wanted == known.lower() or wanted.rsplit("/", 1)[-1] == known.rsplit("/", 1)[-1].lower():
            return defaults
    return None


def stated_defaults(pipeline: Mapping[str, Any]) -> Defaults | None:
    """The defaults that a checkpoint states itself, as ``_glimt_defaults`` in its ``model_index.json``.

    Without them a small model would be asked for its family's size wherever its folder has another name. (Diffusers
    passes over keys that begin with an underscore.) Raises CheckpointError where they are not Defaults.
    """
    values = pipeline.get("_glimt_defaults")
    if values is None:
        return None
    try:
        return Defaults(**values)
    except TypeError as error:
        raise CheckpointError(f"model_index.json: _glimt_defaults: {error}") from error


def variant_of(pipeline: Mapping[str, Any], transformer: WanTransformerConfig, vae: WanVaeConfig) -> str:
    """Which of ``VARIANTS`` a checkpoint is, from its ``model_index.json`` and configs.

    Raises CheckpointError if it is none: neither the noise alone nor noise, mask and image latents go in.
    """
    if pipeline.get("expand_timesteps"):
        return "ti2v"
    experts = pipeline.get("boundary_ratio") is not None
    if transformer.in_channels == vae.z_dim:
        return "t2v-a14b" if experts else "t2v"
    if transformer.in_channels == 2 * vae.z_dim + vae.scale_factor_temporal:
        if transformer.pos_embed_seq_len is not None:
            return "flf2v"
        return "i2v-a14b" if experts else "i2v"
    raise CheckpointError(
        f"the transformer takes {transformer.in_channels} channels, but a Wan model over latents of {vae.z_dim} takes"
        f" {vae.z_dim} (text to video) or {2 * vae.z_dim + vae.scale_factor_temporal} (image to video)"
    )


def make_card(
    name: str,
    pipeline: Mapping[str, Any],
    transformer: WanTransformerConfig,
    vae: WanVaeConfig,
    *,
    shift: float,
    solver: str,
) -> ModelCard:
    """The card of a checkpoint.

    ``pipeline`` is its ``model_index.json``; ``shift`` and ``solver`` are those of its scheduler's config, which a row
    of ``KNOWN`` overrides where its publisher recommends others.
    """
    problems = _mismatches(pipeline, transformer, vae)
    if problems:
        raise CheckpointError(*problems)
    variant = variant_of(pipeline, transformer, vae)
    known = stated_defaults(pipeline) or known_defaults(name) or FALLBACK[variant]
    boundary = pipeline.get("boundary_ratio")
    experts = boundary is not None
    return ModelCard(
        name=name,
        variant=variant,
        height=known.height,
        width=known.width,
        num_frames=known.num_frames,
        fps=known.fps,
        num_inference_steps=known.num_inference_steps,
        guidance_scale=known.guidance_scale,
        guidance_scale_2=(known.guidance_scale_2 or known.guidance_scale) if experts else None,
        shift=shift if known.shift is None else known.shift,
        solver=solver if known.solver is None else known.solver,
        scale_factor_temporal=vae.scale_factor_temporal,
        scale_factor_spatial=vae.scale_factor_spatial,
        z_dim=vae.z_dim,
        patch=transformer.patch_size,
        expand_timesteps=bool(pipeline.get("expand_timesteps")),
        boundary_ratio=None if boundary is None else float(boundary),
    )


PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")


def _mismatches(pipeline: Mapping[str, Any], transformer: WanTransformerConfig, vae: WanVaeConfig) -> list[str]:
    problems = []
    name = pipeline.get("_class_name")
    if name is not None and name not in PIPELINES:
        near = did_you_mean(str(name), PIPELINES)
        problems.append(f"model_index.json names the pipeline {name!r}; glimt runs {' and '.join(PIPELINES)}{near}")
    if transformer.out_channels != vae.z_dim:
        problems.append(f"the transformer gives {transformer.out_channels} channels, the VAE takes {vae.z_dim}")
    boundary = pipeline.get("boundary_ratio")
    if boundary is not None and not (isinstance(boundary, (int, float)) and 0 < boundary < 1):
        problems.append(f"boundary_ratio in model_index.json must lie between 0 and 1, found {boundary!r}")
    return problems

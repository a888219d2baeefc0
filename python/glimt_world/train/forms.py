"""The sizes in which the bundled model can be trained: small for two CPU cores, large for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig

TEXT_WIDTH = 192


@dataclass(frozen=True)
class Form:
    """Networks, and the clips they are trained on. The text encoder is the same in all forms."""

    vae: WanVaeConfig
    transformer: WanTransformerConfig
    num_frames: int
    size: int


def _vae(base: int, decoder_base: int, z_dim: int) -> WanVaeConfig:
    """Wan 2.2's form with two levels: pixels folded 2x2, then halved twice, 8x8x4 in all."""
    return WanVaeConfig(
        base_dim=base,
        decoder_base_dim=decoder_base,
        z_dim=z_dim,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        latents_mean=(0.0,) * z_dim,
        latents_std=(1.0,) * z_dim,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )


def _transformer(z_dim: int, *, heads: int, ffn_dim: int, layers: int) -> WanTransformerConfig:
    return WanTransformerConfig(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=z_dim,
        out_channels=z_dim,
        text_dim=TEXT_WIDTH,
        ffn_dim=ffn_dim,
        num_layers=layers,
    )


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "small": Form(_vae(32, 48, 24), _transformer(24, heads=4, ffn_dim=1024, layers=8), 33, 96),
        "large": Form(_vae(48, 64, 24), _transformer(24, heads=6, ffn_dim=1536, layers=12), 33, 128),
    }
)


def form_of(folder: Path, name: str | None = None) -> Form:
    """The form of a training folder, written down there when a run begins in it.

    Raises:
        ValueError: another form than the one that the folder was begun with.
    """
    path = folder / "form"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(name or "small")
    found = path.read_text()
    if name not in (None, found):
        raise ValueError(f"{folder} holds a run of the {found} form, asked was {name}: use another folder")
    return FORMS[found]

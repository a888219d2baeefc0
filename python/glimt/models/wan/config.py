"""What a Wan checkpoint's ``config.json`` says, as frozen values.

Field names and defaults are those of Diffusers' ``WanTransformer3DModel`` and ``AutoencoderKLWan``, so that a config
file of theirs maps one to one; a key that is not a field is an error, never ignored (keys that begin with ``_`` are
Diffusers' own bookkeeping).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from glimt.errors import CheckpointError
from glimt.suggest import did_you_mean

C = TypeVar("C", "WanTransformerConfig", "WanVaeConfig")

# Written by some tools into the config, of no meaning to the network.
_IGNORED_KEYS = frozenset({"attention_kwargs", "quantization_config"})

# Per-channel statistics of the Wan 2.1 latents (the defaults of Diffusers' AutoencoderKLWan).
_WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class WanTransformerConfig:
    """Shape of a Wan diffusion transformer; ``num_attention_heads * attention_head_dim`` is its width D."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        _refuse("Wan transformer", _transformer_problems(self))

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def eight_bit_parameters(self) -> int:
        """Weights that :meth:`glimt.models.wan.transformer.WanTransformer.quantize` makes eight-bit."""
        return self.num_layers * (5 * self.width**2 + 2 * self.width * self.ffn_dim)

    @property
    def has_image_branch(self) -> bool:
        """Whether cross-attention has the extra CLIP keys and values of Wan 2.1 I2V and FLF2V."""
        return self.added_kv_proj_dim is not None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanTransformerConfig:
        """Read a Diffusers ``transformer/config.json``. Raises CheckpointError naming every key it does not know."""
        return _from_dict(cls, "Wan transformer", values)


@dataclass(frozen=True)
class WanVaeConfig:
    """Shape of a Wan causal video autoencoder: plain (2.1) or ``is_residual`` with pixel patches (2.2)."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = _WAN21_MEAN
    latents_std: tuple[float, ...] = _WAN21_STD
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    clip_output: bool = True
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        _refuse("Wan VAE", _vae_problems(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanVaeConfig:
        """Read a Diffusers ``vae/config.json``. Raises CheckpointError naming every key it does not know."""
        return _from_dict(cls, "Wan VAE", values)


def _from_dict(cls: type[C], what: str, values: Mapping[str, Any]) -> C:
    known = [field.name for field in dataclasses.fields(cls)]
    given = {k: _freeze(v) for k, v in values.items() if not k.startswith("_") and k not in _IGNORED_KEYS}
    _refuse(what, [f"unknown key {key!r}{did_you_mean(key, known)}" for key in given if key not in known])
    return cls(**given)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


def _refuse(what: str, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(*(f"{what} config: {problem}" for problem in problems))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _tuple_of(test: Callable[[object], bool], length: int | None = None) -> Callable[[object], bool]:
    return lambda v: isinstance(v, tuple) and (length is None or len(v) == length) and all(map(test, v))


# What each annotation used above accepts, and how an error words it.
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "int": (_is_size, "a positive integer"),
    "int | None": (lambda v: v is None or _is_size(v), "a positive integer or null"),
    "float": (_is_number, "a finite number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "tuple[int, int, int]": (_tuple_of(_is_size, 3), "three positive integers"),
    "tuple[int, ...]": (_tuple_of(_is_size), "a list of positive integers"),
    "tuple[float, ...]": (_tuple_of(_is_number), "a list of finite numbers"),
    "tuple[bool, ...]": (_tuple_of(lambda v: isinstance(v, bool)), "a list of true and false"),
}


def _kind_problems(config: WanTransformerConfig | WanVaeConfig) -> list[str]:
    problems = []
    for field in dataclasses.fields(config):
        accepts, words = _KINDS[str(field.type)]
        value = getattr(config, field.name)
        if not accepts(value):
            problems.append(f"{field.name} must be {words}, found {value!r}")
    return problems


def _transformer_problems(c: WanTransformerConfig) -> list[str]:
    problems = _kind_problems(c)
    if problems:
        return problems
    if c.attention_head_dim % 2:
        problems.append(f"attention_head_dim must be even for rotary pairs, found {c.attention_head_dim}")
    if c.freq_dim % 2:
        problems.append(f"freq_dim must be even (cosine and sine halves), found {c.freq_dim}")
    if c.qk_norm != "rms_norm_across_heads":
        problems.append(f"qk_norm must be 'rms_norm_across_heads', the only form Wan has; found {c.qk_norm!r}")
    if c.eps <= 0:
        problems.append(f"eps must be positive, found {c.eps!r}")
    if (c.image_dim is None) != (c.added_kv_proj_dim is None):
        problems.append(
            f"image_dim and added_kv_proj_dim go together, found {c.image_dim!r} and {c.added_kv_proj_dim!r}"
        )
    if c.pos_embed_seq_len is not None and c.image_dim is None:
        problems.append(f"pos_embed_seq_len={c.pos_embed_seq_len!r} needs image_dim (first-last-frame models)")
    return problems


def _vae_problems(c: WanVaeConfig) -> list[str]:
    problems = _kind_problems(c)
    if problems:
        return problems
    if len(c.temperal_downsample) != len(c.dim_mult) - 1:
        problems.append(
            f"temperal_downsample needs one entry less than dim_mult, found {len(c.temperal_downsample)}"
            f" for {len(c.dim_mult)}"
        )
    for name in ("latents_mean", "latents_std"):
        if len(getattr(c, name)) != c.z_dim:
            problems.append(f"{name} needs z_dim = {c.z_dim} values, found {len(getattr(c, name))}")
    if any(s <= 0 for s in c.latents_std):
        problems.append("latents_std must be positive")
    return problems

"""Transformers outside a Diffusers folder: single files and shards in the official Wan key layout, or Diffusers-keyed.

The layout is told from the tensors' names, the configuration from their shapes. Text encoder, tokenizer and scheduler
come from a Diffusers folder, the ``base``, and so does the VAE unless an official folder has its own as safetensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glimt.errors import CheckpointError
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.keymap import from_official, vae_from_official
from glimt.weights.folder import CheckpointFolder, Component, misfits
from glimt.weights.header import TensorEntry, other_format, read_headers, read_json, shorten, weight_files
from glimt.weights.origin import Origin

HEAD_DIM = 128  # of every published Wan transformer
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_EXPERTS = (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.safetensors")
_BLOCK = re.compile(r"blocks\.(\d+)\.")

# Part of a name -> the Wan relative it gives away, which has modules this transformer has not.
_RELATIVES: Mapping[str, str] = {
    "vace_blocks.": "a VACE transformer",
    "motion_encoder.": "a Wan-Animate transformer",
    "audio_injector.": "a Wan-S2V transformer",
    "control_adapter.": "a Wan control transformer",
    "lora_": "a LoRA, not a transformer",
    "decoder.upsamples.": "a Wan VAE, not a transformer",
    "encoder.downsamples.": "a Wan VAE, not a transformer",
    "shared.weight": "a text encoder, not a transformer",
    "token_embedding.weight": "a text encoder, not a transformer",
    ".scale_weight": "a scaled-fp8 file, whose weights need scales",
}

# (in_channels, out_channels, width, image branch, first-and-last position table) -> a base that fits.
_BASES: Mapping[tuple[int, int, int, bool, bool], str] = {
    (16, 16, 1536, False, False): "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    (16, 16, 5120, False, False): "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    (36, 16, 5120, True, False): "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    (36, 16, 5120, True, True): "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
    (36, 16, 5120, False, False): "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    (48, 48, 3072, False, False): "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}


@dataclass(frozen=True)
class Layout:
    """How the tensors of a file are named: with ``prefix``, then in the ``official`` or the Diffusers way."""

    prefix: str
    official: bool


def is_official_folder(path: Path) -> bool:
    """Whether a folder holds official Wan files (or the two experts' folders of an A14B)."""
    if any((place / "model_index.json").exists() for place in (path, path.parent)):
        return False
    experts = any((path / folder).is_dir() for _, folder in _EXPERTS)
    return experts or any(path.glob("diffusion_pytorch_model*.safetensors"))


def transformers(path: Path, *, allow_pickle: bool = False) -> list[Component]:
    """The transformer in a single file, a shard of a series, or an official folder; of an A14B both.

    Raises:
        CheckpointError: one, with all unreadable files, names that are no Wan transformer's, missing, extra and
            mis-shaped tensors.
    """
    experts = [(name, path / folder) for name, folder in _EXPERTS if (path / folder).is_dir()] or [
        ("transformer", path)
    ]
    components: list[Component] = []
    problems: list[str] = []
    for name, place in experts:
        try:
            components.append(transformer_component(place, name, allow_pickle=allow_pickle))
        except CheckpointError as error:  # noqa: PERF203 - at most two
            problems += error.problems
    if problems := [*problems, *misfits(*components)]:
        raise CheckpointError(*problems)
    return components


def with_base(path: Path, components: list[Component], base: CheckpointFolder | None) -> CheckpointFolder:
    """The checkpoint of ``components``, which :func:`transformers` found at ``path``, with all else from ``base``.

    Raises:
        CheckpointError: a base that does not fit, no base (with the name of one that would fit), or an official VAE
            beside the transformer with something wrong.
    """
    if base is None:
        raise CheckpointError(f"{path}: holds only {_describe(components)}; {_base_advice(components[0])}")
    vae = _official_vae(path, base)
    if problems := [*_base_problems(path, components, base), *misfits(*vae)]:
        raise CheckpointError(*problems)
    origin = Origin(str(path), base=base.origin)
    merged = CheckpointFolder(path.name, path, origin, base.pipeline, base.settings, base.components)
    return merged.with_components([*components, *vae])


def _official_vae(path: Path, base: CheckpointFolder) -> list[Component]:
    """The VAE in an official folder (``Wan2.1_VAE.safetensors``), of the shape of the base's; nothing without one."""
    files = sorted(file for file in path.glob("*.safetensors") if "vae" in file.name.lower())
    if not files:
        return []
    if len(files) > 1:
        raise CheckpointError(f"{path}: has several VAEs, {', '.join(file.name for file in files)}; keep one of them")
    config, entries = base.component("vae").config, read_headers(tuple(files))
    renames = {name: vae_from_official(name, config.get("num_res_blocks", 2)) for name in entries}
    changed = {name: ours for name, ours in renames.items() if ours not in (None, name)}
    return [Component("vae", "AutoencoderKLWan", files[0], config, tuple(files), entries, MappingProxyType(changed))]


def transformer_component(path: Path, name: str = "transformer", *, allow_pickle: bool = False) -> Component:
    """The transformer in a file or in a folder of shards. Raises CheckpointError when it is not one."""
    files = _files(path)
    entries = _entries(files, allow_pickle)
    layout = detect(entries, path)
    renames = _renames(entries, layout)
    ours = {renames.get(key, key): entry for key, entry in entries.items()}
    config = infer_config(ours, path, _official_settings(files[0].parent, layout))
    mapped = not any(other_format(file) for file in files)
    return Component(
        name,
        "WanTransformer3DModel",
        path,
        MappingProxyType(config),
        files,
        MappingProxyType(dict(entries) if mapped else {}),
        MappingProxyType({key: value for key, value in renames.items() if key != value}),
    )


def detect(names: Mapping[str, TensorEntry], path: Path) -> Layout:
    """The key layout of a file. Raises CheckpointError that says what it seems to be when it is no Wan transformer."""
    for prefix in PREFIXES:
        if f"{prefix}patch_embedding.weight" not in names:
            continue
        if f"{prefix}head.head.weight" in names or f"{prefix}time_embedding.0.weight" in names:
            _refuse_relatives(names, path)
            return Layout(prefix, official=True)
        if f"{prefix}condition_embedder.time_proj.weight" in names or f"{prefix}proj_out.weight" in names:
            _refuse_relatives(names, path)
            return Layout(prefix, official=False)
    _refuse_relatives(names, path)
    some = ", ".join(repr(name) for name in shorten(sorted(names), 4))
    raise CheckpointError(f"{path}: not a Wan transformer, neither by official nor by Diffusers' names; it has {some}")


def infer_config(entries: Mapping[str, TensorEntry], path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A Diffusers transformer config from shapes of tensors under our names.

    Args:
        settings: of an official ``config.json`` beside the file: ``num_heads`` and ``eps``, which shapes do not tell;
            without it heads are 128 wide and eps is 1e-6, as in every published model.

    Raises:
        CheckpointError: naming every tensor that is needed for this and missing or of the wrong rank.
    """
    shapes = _Shapes(entries)
    width, in_channels, *patch = shapes.get("patch_embedding.weight", 5)
    out_features = shapes.get("proj_out.weight", 2)[0]
    text_dim = shapes.get("condition_embedder.text_embedder.linear_1.weight", 2)[1]
    freq_dim = shapes.get("condition_embedder.time_embedder.linear_1.weight", 2)[1]
    ffn_dim = shapes.get("blocks.0.ffn.net.0.proj.weight", 2)[0]
    image = "blocks.0.attn2.add_k_proj.weight" in entries
    image_dim = shapes.get("condition_embedder.image_embedder.norm1.weight", 1)[0] if image else None
    positions = "condition_embedder.image_embedder.pos_embed"
    heads = settings.get("num_heads", width // HEAD_DIM)
    if not shapes.problems:
        shapes.problems += _width_problems(width, heads, out_features, math.prod(patch))
    if shapes.problems:
        raise CheckpointError(*(f"{path}: {problem}" for problem in shapes.problems))
    config = WanTransformerConfig(
        patch_size=(patch[0], patch[1], patch[2]),
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=in_channels,
        out_channels=out_features // math.prod(patch),
        text_dim=text_dim,
        freq_dim=freq_dim,
        ffn_dim=ffn_dim,
        num_layers=1 + max(int(m[1]) for m in map(_BLOCK.match, entries) if m),
        cross_attn_norm="blocks.0.norm2.weight" in entries,
        eps=settings.get("eps", 1e-6),
        image_dim=image_dim,
        added_kv_proj_dim=shapes.get("blocks.0.attn2.add_k_proj.weight", 2)[1] if image else None,
        pos_embed_seq_len=shapes.get(positions, 3)[1] if positions in entries else None,
    )
    return {"_class_name": "WanTransformer3DModel", **json.loads(json.dumps(asdict(config)))}


class _Shapes:
    """Shapes by name and rank; what is missing or of another rank is noted and reads as ones."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self.problems: list[str] = []

    def get(self, name: str, rank: int) -> tuple[int, ...]:
        entry = self.entries.get(name)
        if entry is None:
            self.problems.append(
                f"tensor {name!r} (by Diffusers' name) is missing, so the size of the model is unknown"
            )
        elif len(entry.shape) != rank or 0 in entry.shape:
            self.problems.append(f"tensor {entry.name!r} has shape {list(entry.shape)}, expected {rank} sizes above 0")
        else:
            return entry.shape
        return (1,) * rank


def _width_problems(width: int, heads: object, out_features: int, patch: int) -> list[str]:
    problems = []
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        problems.append(
            f"width {width} does not divide into {heads!r} heads; without num_heads in a config.json beside the file,"
            f" heads are taken to be {HEAD_DIM} wide"
        )
    if out_features % patch:
        problems.append(f"the head gives {out_features} values per patch of {patch} positions, not a multiple")
    return problems


def _files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        files = weight_files(path, "diffusion_pytorch_model") or weight_files(path, "model")
        single = sorted(path.glob("*.safetensors"))
        if not files and len(single) != 1:
            raise CheckpointError(f"{path}: expected diffusion_pytorch_model*.safetensors or one safetensors file")
        return files or (single[0],)
    series = _SHARD.fullmatch(path.name)
    return weight_files(path.parent, series[1]) if series else (path,)


def _entries(files: tuple[Path, ...], allow_pickle: bool) -> Mapping[str, TensorEntry]:
    if not any("pickle" in other_format(file) for file in files):
        return read_headers(files)
    from glimt.weights.reader import open_files

    return open_files(files, allow_pickle=allow_pickle).entries


def _renames(entries: Mapping[str, TensorEntry], layout: Layout) -> dict[str, str]:
    """Our name of each tensor; one that the layout does not know keeps its own, and strict loading reports it."""
    renames = {}
    for name in entries:
        bare = name.removeprefix(layout.prefix)
        ours = from_official(bare) if layout.official else bare
        renames[name] = name if ours is None else ours
    return renames


def _official_settings(folder: Path, layout: Layout) -> Mapping[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    config = read_json(file)
    if config.get("_class_name") == "WanModel" and layout.official:
        return {key: config[key] for key in ("num_heads", "eps") if key in config}
    if config.get("_class_name") == "WanTransformer3DModel":
        named = {"num_heads": config.get("num_attention_heads"), "eps": config.get("eps")}
        return {key: value for key, value in named.items() if value is not None}
    return {}


def _refuse_relatives(names: Mapping[str, TensorEntry], path: Path) -> None:
    for part, what in _RELATIVES.items():
        example = next((name for name in names if part in name), None)
        if example is not None:
            raise CheckpointError(f"{path}: seems to be {what} (it has {example!r}), which cannot be loaded here")


def _describe(components: list[Component]) -> str:
    config = components[0].config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    kind = "a Wan transformer" if len(components) == 1 else "two Wan transformers"
    return f"{kind} of {config['num_layers']} layers, width {width}, {config['in_channels']} input channels"


def _base_advice(component: Component) -> str:
    c = component.config
    width = c["num_attention_heads"] * c["attention_head_dim"]
    key = (c["in_channels"], c["out_channels"], width, c["image_dim"] is not None, c["pos_embed_seq_len"] is not None)
    example = f", as base={_BASES[key]!r}" if key in _BASES else ""
    return f"text encoder, VAE, tokenizer and scheduler must come from a Diffusers folder or Hub id{example}"


def _base_problems(path: Path, components: list[Component], base: CheckpointFolder) -> list[str]:
    problems = []
    for component in components:
        z_dim = base.component("vae").config.get("z_dim", 16)
        if component.config["out_channels"] != z_dim:
            problems.append(
                f"{path}: the {component.name} gives {component.config['out_channels']} latent channels,"
                f" the VAE of {base.root} has {z_dim}"
            )
        text = base.component("text_encoder").config.get("d_model")
        if text is not None and component.config["text_dim"] != text:
            problems.append(
                f"{path}: the {component.name} takes text of width {component.config['text_dim']},"
                f" the text encoder of {base.root} gives {text}"
            )
    return problems

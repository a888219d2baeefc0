"""Components of a checkpoint as modules: which class each is, and which of its tensors keep to float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glimt.errors import CheckpointError, MissingDependencyError
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.suggest import did_you_mean
from glimt.weights.assign import load_into, meta_parameters
from glimt.weights.folder import Component
from glimt.weights.reader import MappedTensors, TensorSource, open_files


@dataclass(frozen=True)
class Kind:
    """How a class of component is built and filled.

    ``keep_in_fp32`` and ``ignore`` are parts of tensors' dotted names (see :func:`glimt.weights.assign.load_into`);
    ``half_only`` restricts the first to float16, whose range is the reason.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    keep_in_fp32: Collection[str] = ()
    half_only: bool = False
    ignore: Collection[str] = ()


def load(
    component: Component, device: torch.device | str, dtype: torch.dtype | None, *, allow_pickle: bool = False
) -> nn.Module:
    """Build a component without memory and fill it from its files.

    Raises:
        CheckpointError: a class that cannot be loaded, a config its class refuses, or mismatched or NaN tensors.
        MissingDependencyError: transformers is not installed and the component is one of its classes.
    """
    kinds = _kinds()
    name = component.class_name
    if name not in kinds:
        raise CheckpointError(f"{component.path}: {name!r} has no weights to load{did_you_mean(name, kinds)}")
    kind = kinds[name]
    with meta_parameters():
        module = _build(kind, component)
    source = _source(component, allow_pickle)
    keep = kind.keep_in_fp32 if not kind.half_only or dtype == torch.float16 else ()
    load_into(
        module,
        source,
        what=f"{component.name} ({component.path})",
        names={**_prefix_renames(source, module), **component.renames},
        dtype=dtype,
        device=device,
        keep_in_fp32=keep,
        ignore=kind.ignore,
    )
    return module.to(device).eval()  # buffers that are in no file follow here


def _source(component: Component, allow_pickle: bool) -> TensorSource:
    return (
        MappedTensors(component.entries)
        if component.entries
        else open_files(component.files, allow_pickle=allow_pickle)
    )


def _build(kind: Kind, component: Component) -> nn.Module:
    try:
        return kind.build(component.config)
    except (CheckpointError, MissingDependencyError):
        raise
    except Exception as error:  # another library's config classes raise whatever they like
        raise CheckpointError(f"{component.path}: its config is refused by {component.class_name}: {error}") from error


def _prefix_renames(source: TensorSource, module: nn.Module) -> dict[str, str]:
    """CLIP's vision tower is ``vision_model.x`` in some versions of transformers and ``x`` in others."""
    prefix = "vision_model."
    wanted, given = (any(n.startswith(prefix) for n in names) for names in (module.state_dict(), source.entries))
    if given and not wanted:
        return {name: name.removeprefix(prefix) for name in source.entries}
    if wanted and not given and "embeddings.class_embedding" in source.entries:
        return {name: name if name.startswith("visual_projection.") else prefix + name for name in source.entries}
    return {}


def _kinds() -> dict[str, Kind]:
    from glimt.models.wan.transformer import KEEP_IN_FP32

    # Diffusers' own files of Wan 2.1 I2V carry `norm_added_q`, which no model reads.
    return {
        "WanTransformer3DModel": Kind(_transformer, KEEP_IN_FP32, ignore=("norm_added_q",)),
        "AutoencoderKLWan": Kind(_vae),
        "UMT5EncoderModel": Kind(_text_encoder, ("wo",), half_only=True),
        "CLIPVisionModel": Kind(_image_encoder, ignore=("position_ids", "visual_projection")),
        "CLIPVisionModelWithProjection": Kind(_image_encoder, ignore=("position_ids", "visual_projection")),
    }


def _transformer(config: Mapping[str, Any]) -> nn.Module:
    from glimt.models.wan.transformer import WanTransformer

    return WanTransformer(WanTransformerConfig.from_dict(config))


def _vae(config: Mapping[str, Any]) -> nn.Module:
    from glimt.models.wan.vae import WanVae

    return WanVae(WanVaeConfig.from_dict(config))


def _text_encoder(config: Mapping[str, Any]) -> nn.Module:
    from glimt.models.umt5 import Umt5Config, Umt5Encoder

    return Umt5Encoder(Umt5Config.from_dict(config))


def _image_encoder(config: Mapping[str, Any]) -> nn.Module:
    # Wan reads hidden states and never the projection, so both classes load as the tower alone.
    transformers = _transformers("encode images")
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig.from_dict(dict(config)))


def _transformers(purpose: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", purpose) from error
    return transformers

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
from glimt.weights.assign import load_into, match, meta_parameters, scan
from glimt.weights.folder import Component
from glimt.weights.reader import MappedTensors, TensorSource, open_files


@dataclass(frozen=True)
class Kind:
    """How a class of component is built and filled.

    ``keep_in_fp32`` and ``ignore`` are parts of tensors' dotted names (see :func:`glimt.weights.assign.load_into`);
    ``half_only`` restricts the first to float16, whose range is the reason. ``settle`` is called with the filled module
    where it is not on a CPU. ``quantize`` is called with the module, a kind of eight-bit numbers and the device.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    keep_in_fp32: Collection[str] = ()
    half_only: bool = False
    ignore: Collection[str] = ()
    settle: Callable[[Any], None] | None = None
    quantize: Callable[[Any, str, torch.device], None] | None = None


def load(
    component: Component,
    device: torch.device | str,
    dtype: torch.dtype | None,
    *,
    allow_pickle: bool = False,
    precision: str = "full",
) -> nn.Module:
    """Build a component without memory and fill it from its files; with ``precision`` ``"int8"`` or ``"fp8"`` its
    products then become eight-bit, where its class has such.

    Raises:
        CheckpointError: a class that cannot be loaded, a config its class refuses, or mismatched or NaN tensors.
        MissingDependencyError: transformers is not installed and the component is one of its classes.
    """
    kind = _kind(component)
    module, source = _build(kind, component), _source(component, allow_pickle)
    device, quantizes = torch.device(device), kind.quantize is not None and precision != "full"
    keep = kind.keep_in_fp32 if not kind.half_only or dtype == torch.float16 else ()
    load_into(
        module,
        source,
        what=_what(component),
        names=_names(component, source.entries, module),
        dtype=dtype,
        device="cpu" if quantizes else device,
        keep_in_fp32=keep,
        ignore=kind.ignore,
    )
    if quantizes and kind.quantize is not None:
        kind.quantize(module, precision, device)
    elif kind.settle is not None and device.type != "cpu":
        kind.settle(module)
    return module.to(device).eval()  # buffers that are in no file follow here


def tensor_problems(component: Component) -> list[str]:
    """What of a component's tensors is missing, extra or misshapen, by the headers of its files: nothing else is read.

    A component in pickles says what it holds only when these are read, and has no problems until then. The class of an
    image encoder comes from transformers, whose import takes seconds; its model cannot run without it.
    """
    if not component.entries:
        return []
    problems = _absurd_counts(component)
    if not problems:
        kind = _kind(component)
        try:
            module = _build(kind, component)
        except CheckpointError as error:
            return list(error.problems)
        names = _names(component, component.entries, module)
        _, problems = match(module, component.entries, names, kind.ignore)
    return [f"{_what(component)}: {problem}" for problem in problems]


def check_values(component: Component, *, allow_pickle: bool = False) -> None:
    """Read a component's tensors once, one at a time, and keep nothing.

    Raises:
        CheckpointError: what :func:`load` would find wrong with them.
    """
    kind, source = _kind(component), _source(component, allow_pickle)
    module = _build(kind, component)
    fits, problems = match(module, source.entries, _names(component, source.entries, module), kind.ignore)
    if problems := problems or scan(source, fits):
        raise CheckpointError(*(f"{_what(component)}: {problem}" for problem in problems))


def _kind(component: Component) -> Kind:
    kinds, name = _kinds(), component.class_name
    if name not in kinds:
        raise CheckpointError(f"{component.path}: {name!r} has no weights to load{did_you_mean(name, kinds)}")
    return kinds[name]


def _what(component: Component) -> str:
    return f"{component.name} ({component.path})"


def _absurd_counts(component: Component) -> list[str]:
    """Layers are built one by one, so a damaged count could take forever; each has a tensor at least."""
    counts = {key: component.config.get(key) for key in ("num_layers", "num_hidden_layers", "num_res_blocks")}
    held = len(component.entries)
    return [
        f"its config says {key} = {count}, its files hold {held} tensors"
        for key, count in counts.items()
        if isinstance(count, int) and count > held
    ]


def _source(component: Component, allow_pickle: bool) -> TensorSource:
    return (
        MappedTensors(component.entries)
        if component.entries
        else open_files(component.files, allow_pickle=allow_pickle)
    )


def _build(kind: Kind, component: Component) -> nn.Module:
    """The component's module, with parameters that take no memory."""
    try:
        with meta_parameters():
            return kind.build(component.config)
    except (CheckpointError, MissingDependencyError):
        raise
    except Exception as error:  # another library's config classes raise whatever they like
        raise CheckpointError(f"{component.path}: its config is refused by {component.class_name}: {error}") from error


def _names(component: Component, given: Collection[str], module: nn.Module) -> dict[str, str]:
    """The module's names of the tensors in the files, where the two differ.

    CLIP's vision tower is ``vision_model.x`` in some versions of transformers and ``x`` in others.
    """
    prefix, names = "vision_model.", dict(component.renames)
    wanted, found = (any(n.startswith(prefix) for n in some) for some in (module.state_dict(), given))
    if found and not wanted:
        names = {name: name.removeprefix(prefix) for name in given}
    elif wanted and not found and "embeddings.class_embedding" in given:
        names = {name: name if name.startswith("visual_projection.") else prefix + name for name in given}
    return names


def _kinds() -> dict[str, Kind]:
    from glimt.models.wan.transformer import KEEP_IN_FP32, WanTransformer
    from glimt.models.wan.vae import WanVae

    # Diffusers' own files of Wan 2.1 I2V carry `norm_added_q`, which no model reads.
    return {
        "WanTransformer3DModel": Kind(
            _transformer,
            KEEP_IN_FP32,
            ignore=("norm_added_q",),
            settle=WanTransformer.fuse,
            quantize=WanTransformer.quantize,
        ),
        "AutoencoderKLWan": Kind(_vae, settle=WanVae.lay_innermost),
        "TinyAutoencoder": Kind(_tiny),
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


def _tiny(config: Mapping[str, Any]) -> nn.Module:
    from glimt.models.taehv.config import TinyConfig
    from glimt.models.taehv.model import TinyAutoencoder

    return TinyAutoencoder(TinyConfig.from_dict(config))


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

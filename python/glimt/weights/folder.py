"""A checkpoint in the Diffusers folder layout: what is in it, checked whole, before any tensor is read.

    model_index.json                        which class each component is, and settings of the pipeline
    transformer/  vae/  text_encoder/ ...   config.json and safetensors files of each
    tiny_decoder/                           if there is one; the index does not name it (``weights/tiny.py``)

Tensors are matched by the headers of their files with the modules they are for; importing this module imports no torch,
reading a folder does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from glimt.errors import CheckpointError
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.models.zoo import PIPELINES, TEXT_TOKENS, ModelCard, make_card
from glimt.suggest import did_you_mean
from glimt.weights import digest
from glimt.weights.header import TensorEntry, read_headers, read_json, shorten, weight_files
from glimt.weights.origin import Origin

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glimt.models.text import PromptTokenizer


def _check_scheduler(config: Mapping[str, Any]) -> object:
    from glimt.sampling.schedule import from_scheduler_config

    return from_scheduler_config(config)


def _check_text_encoder(config: Mapping[str, Any]) -> object:
    from glimt.models.umt5 import Umt5Config

    return Umt5Config.from_dict(config)


TINY = "tiny_decoder"


@dataclass(frozen=True)
class Role:
    """What may stand under one name of a pipeline: classes (none: any), and how its files are called.

    ``stem`` is that of the weight files; empty for components without weights of their own.
    """

    classes: tuple[str, ...] = ()
    stem: str = ""
    config: str = "config.json"
    required: bool = True
    check: Callable[[Mapping[str, Any]], object] | None = None


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "scheduler": Role(config="scheduler_config.json", check=_check_scheduler),
        "tokenizer": Role(config=""),
        "text_encoder": Role(("UMT5EncoderModel",), "model", check=_check_text_encoder),
        "transformer": Role(
            ("WanTransformer3DModel",), "diffusion_pytorch_model", check=WanTransformerConfig.from_dict
        ),
        "transformer_2": Role(
            ("WanTransformer3DModel",), "diffusion_pytorch_model", required=False, check=WanTransformerConfig.from_dict
        ),
        "vae": Role(("AutoencoderKLWan",), "diffusion_pytorch_model", check=WanVaeConfig.from_dict),
        "image_encoder": Role(("CLIPVisionModel", "CLIPVisionModelWithProjection"), "model", required=False),
        "image_processor": Role(config="preprocessor_config.json", required=False),
    }
)


@dataclass(frozen=True, eq=False)
class Component:
    """One part of a checkpoint.

    Attributes:
        name: its role, as in ``"transformer"``.
        class_name: the class that the checkpoint names, as in ``"WanTransformer3DModel"``.
        path: its folder, or the file it comes from.
        config: its JSON config as it stands; empty for a tokenizer.
        files: its weight files; empty when it has none.
        entries: what its safetensors files hold; empty for pickles, which say so only when they are read.
        renames: the model's name of a tensor by its name in the files, where the two differ.
    """

    name: str
    class_name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    entries: Mapping[str, TensorEntry] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors as they are stored."""
        if self.files and not self.entries:
            return sum(file.stat().st_size for file in self.files)
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def num_parameters(self) -> int:
        """Elements of its tensors; 0 when these are not known without reading a pickle."""
        return sum(entry.numel for entry in self.entries.values())

    def digest(self) -> str:
        """SHA-256, in hex, of config and weights (of the files, when they are not safetensors). Reads every byte once
        per process and file."""
        if self.entries:
            return digest.tensors_digest(self.config, self.files)
        others = self.files or tuple(f for f in self.path.glob("*") if f.is_file() and not f.name.startswith("."))
        return digest.combined_digest(
            {"config": digest.config_digest(self.config), "files": digest.files_digest(others)}
        )


@dataclass(frozen=True, eq=False)
class CheckpointFolder:
    """A checkpoint that was found whole: every component's config read, and its files' headers matched with its class.

    Attributes:
        name: as it was asked for: the bundled model's name, a Hub id, or the folder's own name.
        root: the folder (or the single file) it was opened from.
        origin: how to ask for it again.
        pipeline: class name of the Diffusers pipeline.
        settings: the pipeline's own settings, such as ``boundary_ratio`` and ``expand_timesteps``.
        components: by role; absent ones are not there.
    """

    name: str
    root: Path
    origin: Origin
    pipeline: str
    settings: Mapping[str, Any]
    components: Mapping[str, Component]

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """``scheduler_config.json`` as it stands; empty when the checkpoint has no scheduler."""
        scheduler = self.components.get("scheduler")
        return scheduler.config if scheduler else {}

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """Opened when it is first asked for, and kept. Raises CheckpointError if it is missing or no tokenizer."""
        from glimt.models.text import PromptTokenizer

        return PromptTokenizer(self.component("tokenizer").path, TEXT_TOKENS)

    def component(self, name: str) -> Component:
        """A component by name. Raises CheckpointError with near names when it is not there."""
        if name not in self.components:
            has = ", ".join(self.components) or "nothing"
            raise CheckpointError(f"{self.root}: has no {name!r}, only {has}{did_you_mean(name, self.components)}")
        return self.components[name]

    def load_component(
        self,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        allow_pickle: bool = False,
        precision: str = "full",
    ) -> nn.Module:
        """A component with weights as a module in evaluation mode, its parameters without gradients.

        Args:
            name: ``transformer``, ``transformer_2``, ``vae``, ``text_encoder`` or ``image_encoder``.
            dtype: of the floating weights; None keeps the file's. Modules that must stay float32 do.
            precision: "int8" or "fp8": the products of a transformer take eight-bit numbers.

        Raises:
            CheckpointError: every missing, extra or mis-shaped tensor, or every tensor with NaN.
        """
        from glimt.weights.components import load

        return load(self.component(name), device, dtype, allow_pickle=allow_pickle, precision=precision)

    def card(self) -> ModelCard:
        """What kind of model this is and its defaults."""
        from glimt.sampling.schedule import from_scheduler_config

        spec = from_scheduler_config(self.scheduler_config)
        return make_card(
            self.name,
            {**self.settings, "_class_name": self.pipeline},
            WanTransformerConfig.from_dict(self.component("transformer").config),
            WanVaeConfig.from_dict(self.component("vae").config),
            shift=spec.shift,
            solver=spec.solver,
        )

    def digests(self, *, tiny: bool = False) -> dict[str, str]:
        """SHA-256, in hex, of each component; of the tiny decoder with ``tiny`` only, as it decides no frame unless it
        is asked to decode."""
        return {name: part.digest() for name, part in self.components.items() if tiny or name != TINY}

    def digest(self, *, tiny: bool = False) -> str:
        """SHA-256, in hex, over :meth:`digests` and the pipeline's settings."""
        return digest.combined_digest({**self.digests(tiny=tiny), "": digest.config_digest(self.settings)})

    def with_components(self, components: Iterable[Component]) -> CheckpointFolder:
        """The same checkpoint with some components added or replaced."""
        merged = {**self.components, **{component.name: component for component in components}}
        return replace(self, components=MappingProxyType(merged))


def read_folder(root: Path, *, name: str = "", allow_pickle: bool = False) -> CheckpointFolder:
    """Read a Diffusers folder.

    Args:
        name: how the checkpoint was asked for; the folder's own name when not given.

    Raises:
        CheckpointError: one, with everything that is wrong: no or a broken ``model_index.json``, unknown classes,
            missing or broken configs, missing, truncated or corrupted weight files, pickles without ``allow_pickle``,
            missing, extra or mis-shaped tensors.
    """
    index_file = root / "model_index.json"
    if not index_file.is_file():
        raise CheckpointError(f"{root}: no model_index.json here, {describe_folder(root)}")
    index = read_json(index_file)
    problems = _pipeline_problems(index_file, index)
    components: dict[str, Component] = {}
    for role, value in index.items():
        if not isinstance(value, list) or role.startswith("_"):
            continue
        try:
            component = _read_component(root, role, value, allow_pickle)
        except CheckpointError as error:
            problems += error.problems
            continue
        if component is not None:
            components[role] = component
    problems += _add_tiny(root, components)
    absent = [role for role in ROLES if ROLES[role].required and not isinstance(index.get(role), list)]
    problems += [f"{index_file}: names no {role!r}" for role in absent]
    problems += [f"{index_file}: {problem}" for problem in _unmet_needs(index, components)]
    if problems:
        raise CheckpointError(*problems)
    stated = {k: v for k, v in index.items() if not isinstance(v, list)}
    settings = {k: v for k, v in stated.items() if not k.startswith("_") or k == "_glimt_defaults"}
    return CheckpointFolder(
        name or root.resolve().name,
        root,
        Origin(str(root)),
        index["_class_name"],
        MappingProxyType(settings),
        MappingProxyType(components),
    )


def _add_tiny(root: Path, components: dict[str, Component]) -> list[str]:
    """The tiny decoder joins ``components`` where the folder has one; what is wrong with it."""
    from glimt.weights.tiny import read_tiny

    if not (root / TINY).is_dir() or "vae" not in components:
        return []
    try:
        components[TINY] = read_tiny(root / TINY / "model.safetensors", components["vae"])
    except CheckpointError as error:
        return list(error.problems)
    return []


def describe_folder(root: Path) -> str:
    """What a folder is that is not a Diffusers checkpoint, and what to do about it, for the end of an error."""
    if not root.is_dir():
        return "and no such folder"
    below = sorted(path.parent.name for path in root.glob("*/model_index.json"))
    if below:
        return f"but in {', '.join(map(repr, below[:6]))} below it; give one of these"
    if (root.parent / "model_index.json").is_file() and (root / "config.json").is_file():
        return f"as this is one component of a checkpoint; give its parent folder {root.parent}"
    files = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    if any(name.endswith(".safetensors") for name in files):
        return f"only {', '.join(files[:8])}; a single weights file is given by its own path, with a base for the rest"
    return f"only {', '.join(files[:8])}" if files else "the folder is empty"


def _pipeline_problems(file: Path, index: Mapping[str, Any]) -> list[str]:
    name = index.get("_class_name")
    if not isinstance(name, str):
        return [f"{file}: has no _class_name"]
    if name not in PIPELINES:
        near = did_you_mean(name, PIPELINES)
        return [f"{file}: pipeline class {name!r} is not supported, only {', '.join(PIPELINES)}{near}"]
    return []


def _unmet_needs(index: Mapping[str, Any], components: Mapping[str, Component]) -> list[str]:
    """Optional components that others cannot do without."""
    transformer = components.get("transformer")
    needs = []
    if transformer is not None and transformer.config.get("image_dim") is not None:
        needs += [(name, "the transformer has an image branch") for name in ("image_encoder", "image_processor")]
    if index.get("boundary_ratio") is not None:
        needs.append(("transformer_2", f"boundary_ratio is {index['boundary_ratio']!r}"))
    absent = [(name, why) for name, why in needs if index.get(name) in (None, [None, None])]
    return [f"{name!r} is null or absent, and is needed because {why}" for name, why in absent]


def _read_component(root: Path, name: str, value: list[Any], allow_pickle: bool) -> Component | None:
    index_file = root / "model_index.json"
    if name not in ROLES:
        if all(part is None for part in value):
            return None
        raise CheckpointError(f"{index_file}: unknown component {name!r}{did_you_mean(name, ROLES)}")
    role = ROLES[name]
    if value == [None, None]:
        if role.required:
            raise CheckpointError(f"{index_file}: {name!r} is null, and is needed")
        return None
    if len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise CheckpointError(f"{index_file}: {name!r} should be [library, class], found {str(value)[:80]}")
    if role.classes and value[1] not in role.classes:
        near = did_you_mean(value[1], role.classes)
        raise CheckpointError(
            f"{index_file}: {name!r} of class {value[1]!r} is not supported, only {', '.join(role.classes)}{near}"
        )
    if not (root / name).is_dir():
        raise CheckpointError(f"{index_file}: names {name!r}, whose folder {root / name} is missing")
    return read_component(root / name, name, value[1], allow_pickle=allow_pickle)


def read_component(path: Path, name: str, class_name: str, *, allow_pickle: bool = False) -> Component:
    """One component's folder. Raises CheckpointError with all that is wrong with its config, files and tensors."""
    role = ROLES[name]
    problems: list[str] = []
    config: Mapping[str, Any] = {}
    files: tuple[Path, ...] = ()
    entries: Mapping[str, TensorEntry] = {}
    try:
        config = _read_config(path / role.config, class_name, role) if role.config else {}
    except CheckpointError as error:
        problems += error.problems
    try:
        files = _find_weights(path, role.stem, allow_pickle) if role.stem else ()
        entries = read_headers(file for file in files if file.suffix == ".safetensors")
    except CheckpointError as error:
        problems += error.problems
    if not problems and not role.stem and not role.config and not any(path.iterdir()):
        problems.append(f"{path}: the folder is empty")
    if problems:
        raise CheckpointError(*problems)
    found = Component(name, class_name, path, MappingProxyType(dict(config)), files, MappingProxyType(dict(entries)))
    if problems := misfits(found):
        raise CheckpointError(*problems)
    return found


def misfits(*components: Component) -> list[str]:
    """Every tensor that is missing, extra or misshapen in any of ``components``."""
    from glimt.weights.components import tensor_problems

    return [problem for component in components for problem in tensor_problems(component)]


def _read_config(file: Path, class_name: str, role: Role) -> dict[str, Any]:
    config = read_json(file)
    named = config.get("_class_name", class_name)
    if role.classes and named != class_name:
        raise CheckpointError(f"{file}: is of class {named!r}, model_index.json names {class_name!r}")
    if role.check is not None:
        try:
            role.check(config)
        except CheckpointError as error:
            raise CheckpointError(*(f"{file}: {problem}" for problem in error.problems)) from error
    return config


def _find_weights(path: Path, stem: str, allow_pickle: bool) -> tuple[Path, ...]:
    files = weight_files(path, stem)
    if files:
        return files
    pickles = sorted(p for p in path.glob("*.bin") if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.bin", p.name))
    if pickles and allow_pickle:
        return tuple(pickles)
    if pickles:
        raise CheckpointError(
            f"{path}: holds only pickles ({', '.join(p.name for p in pickles[:3])}), which can run code when loaded;"
            " use safetensors, or pass allow_pickle=True"
        )
    found = shorten(sorted(p.name for p in path.glob("*") if p.is_file()), 6)
    raise CheckpointError(f"{path}: no {stem}.safetensors and no shards of it; found {', '.join(found) or 'nothing'}")

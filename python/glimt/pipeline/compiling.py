"""A checkpoint's networks handed to the compiler, and what was compiled of them found again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from glimt.errors import CompileError
from glimt.plan import EXPERTS, Planner
from glimt.weights.digest import config_digest
from glimt.weights.folder import CheckpointFolder

if TYPE_CHECKING:
    import torch

    from glimt.compile.build import Network
    from glimt.compile.record import BuiltEngine
    from glimt.compile.spec import CompileSpec
    from glimt.compile.store import ArtifactStore
    from glimt.models.wan.transformer import WanTransformer

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def store_of(planner: Planner) -> ArtifactStore:
    """Where this configuration keeps its TRT engines."""
    from glimt.compile.build import default_store
    from glimt.compile.store import ArtifactStore

    asked = planner.config.engines
    return default_store() if asked is None else ArtifactStore(Path(asked).expanduser())


def compiled(planner: Planner, spec: CompileSpec) -> Iterator[BuiltEngine]:
    """The TRT engines of ``spec``, as each is made. Raises as :func:`glimt.compile.build.build_engines`."""
    from glimt.compile.build import build_engines

    card = planner.card
    return build_engines(spec, _networks(planner), card, store_of(planner), guided=card.guidance_scale > 1)


def _networks(planner: Planner) -> list[Network]:
    from glimt.compile.build import Network

    folder = planner.folder
    pictures = 2 if planner.card.variant == "flf2v" else 1  # first and last
    return [
        Network(
            component=name,
            weights=folder.component(name).digest(),
            config=config_digest(folder.component(name).config),
            load=partial(_load, folder, name, planner.config.allow_pickle),
            text_tokens=planner.card.text_tokens,
            image_tokens=pictures * planner.tokens_of_image,
        )
        for name in EXPERTS
        if name in folder.components
    ]


def _load(folder: CheckpointFolder, name: str, allow_pickle: bool, dtype: torch.dtype) -> WanTransformer:
    loaded = folder.load_component(name, "cpu", dtype, allow_pickle=allow_pickle)
    return cast("WanTransformer", loaded.eval())


def require_engines(planner: Planner) -> None:
    """Find the TRT engines that the configured backend would run for this checkpoint, and say why it does not.

    Raises:
        MissingDependencyError: the library is not installed.
        KeyMismatchError: none was built for this; names what differs.
        CompileError: always else: there is no card here, or there is and plan files cannot be run yet.
    """
    from glimt.compile.backends import builder
    from glimt.compile.build import find_engines

    backend, store = planner.config.backend, store_of(planner)
    library = builder(backend).library()
    found = [
        engine
        for network in _networks(planner)
        for engine in find_engines(store, {**_known(planner, library), **_own(network)}, backend)
    ]
    built = ", ".join(dict.fromkeys(f"{engine.bucket} for {engine.target}" for engine in found))
    there = f"{built}, in {store.root}"
    instead = "backend 'eager' or 'inductor' runs this model here"
    if planner.device == "cpu":
        raise CompileError(
            f"backend: {backend!r} runs on an NVIDIA GPU, and the device is the CPU. What was built is whole and for "
            f"this checkpoint ({there}); {instead}"
        )
    raise CompileError(
        f"backend: what {backend!r} built is whole and for this checkpoint and card ({there}), but this "
        f"version of glimt builds plan files and does not run them; {instead}"
    )


def _own(network: Network) -> dict[str, Any]:
    return {"component": network.component, "weights": network.weights, "config": network.config}


def _known(planner: Planner, library: str) -> dict[str, Any]:
    """What of a key is known before anything is exported."""
    from glimt.compile.engine_key import NO_KERNELS, source_digest

    known = {"source": source_digest(), "library": library, "kernels": NO_KERNELS, "driver": ""}
    if planner.config.dtype != "auto":
        known["precision"] = _PRECISIONS[planner.config.dtype]
    if planner.device != "cpu":
        import torch

        known["gpu"] = "sm_{}{}".format(*torch.cuda.get_device_capability(planner.device))
    return known

"""From networks and a spec to plan files in a store: each TRT engine is made once, under its key.

One plan file for each bucket and each target, its sizes fixed but for the number of text tokens. Measured on the
bundled model with TensorRT-RTX 1.7 (sm_89, buckets of 81 and 432 tokens): the arena of a file for one size is 10.5 or
19.0 MB, that of one range over both 19.0 for either; a file with both as profiles has arenas as small, and 33.1 MB on
disk against 2 x 24.0, for the weights are in it once. Files of their own win for what follows: a bucket is added,
checked, found by its key and removed without touching another. They cost the weights again in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glimt.compile.backends import Builder, PlanFacts, PlanJob, Shapes, builder
from glimt.compile.engine_key import NO_KERNELS, EngineKey, source_digest
from glimt.compile.export import GRAPH_FILE, PRECISIONS, exporter_versions, write_graph
from glimt.compile.graphs import TransformerGraph
from glimt.compile.record import PLAN_FILE, BuiltEngine, built, is_engine
from glimt.compile.spec import Bucket, Card, CompileSpec, tokens
from glimt.compile.store import Artifact, ArtifactStore, Key, differences, read_artifact
from glimt.errors import CompileError, KeyMismatchError
from glimt.models.wan.transformer import WanTransformer

# Prompts of a sentence or two, for which the kernels are chosen; any number up to the model's own runs.
USUAL_TEXT_TOKENS = 64
_DTYPES = {name: dtype for dtype, name in PRECISIONS.items()}


@dataclass(frozen=True)
class Network:
    """A network that is to be compiled, and whose it is.

    Attributes:
        component: "transformer" or "transformer_2".
        weights: digest of its part of the checkpoint. config: of its config.
        load: gives it in evaluation on the CPU, its products in this dtype.
        text_tokens: the most a prompt has. image_tokens: 0 where it takes none.
    """

    component: str
    weights: str
    config: str
    load: Callable[[torch.dtype], WanTransformer]
    text_tokens: int
    image_tokens: int = 0


@dataclass(frozen=True)
class GraphSourceKey(Key):
    """What an exported graph is kept under: all that decides what it is, known before it is there."""

    component: str
    weights: str
    config: str
    source: str
    precision: str
    form: Mapping[str, int | str]
    exporter: Mapping[str, str]


def build_engines(
    spec: CompileSpec, networks: Iterable[Network], card: Card, store: ArtifactStore, *, guided: bool
) -> Iterator[BuiltEngine]:
    """Make what ``spec`` asks for, one TRT engine after the other; what is in ``store`` already is taken from there.

    Args:
        guided: whether a call has two prompts, where the spec leaves it open.

    Raises:
        RequestError: a spec that the model cannot meet.
        CompileError: a target that cannot be built for here, or what the compiler had to say.
        MissingDependencyError: no compiler, or nothing to export with.
    """
    spec.check(card)
    maker = builder(spec.backend)
    maker.library()
    for target in spec.targets:
        maker.check_target(target)
    prompts = 2 if (guided if spec.guided is None else spec.guided) else 1
    for network in networks:
        source = _Graph(network, spec.precision, prompts, store)
        for bucket in spec.sizes:
            for target in spec.targets:
                yield _build(maker, source, bucket, target, card)


class _Graph:
    """The exported graph of a network, made when it is wanted and not in the store; the network is then let go of."""

    def __init__(self, network: Network, precision: str, prompts: int, store: ArtifactStore) -> None:
        self.network, self.precision, self.store = network, precision, store
        form: dict[str, int | str] = {"batch": 1, "prompts": prompts, "timesteps": "sample"}
        self._key = GraphSourceKey(
            component=network.component,
            weights=network.weights,
            config=network.config,
            source=source_digest(),
            precision=precision,
            form=form,
            exporter=exporter_versions(),
        )
        self.artifact = store.build(self._key, self._fill)

    def shapes(self, bucket: Bucket, card: Card) -> dict[str, Shapes]:
        """Least, best and largest shape of each input for clips of one size."""
        grid = tokens(bucket, card)
        texts = (1, min(USUAL_TEXT_TOKENS, self.network.text_tokens), self.network.text_tokens)
        least, best, largest = (
            {"t": grid.t, "y": grid.y, "x": grid.x, "text": text, "image": self.network.image_tokens} for text in texts
        )
        return {
            name: (_sized(dims, least), _sized(dims, best), _sized(dims, largest))
            for name, dims in self.artifact.record["dims"].items()
        }

    def _fill(self, folder: Path) -> dict[str, Any]:
        with torch.device("cpu"):
            model = self.network.load(_DTYPES[self.precision])
        prompts = int(self._key.form["prompts"])
        graph = TransformerGraph(model, prompts=prompts)
        made, record = write_graph(graph, folder)
        dims = {
            port.name: [size if isinstance(size, int) else str(size) for size in port.dims] for port in graph.inputs
        }
        return {**record, "graph": made.graph, "weights_file": made.weights, "dims": dims}


def _sized(dims: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Dims such as ``[1, 24, "t", "2*y", "2*x"]`` where the names are ``sizes``."""
    found = []
    for dim in dims:
        factor, _, name = str(dim).rpartition("*")
        found.append(dim if isinstance(dim, int) else int(factor or 1) * sizes[name])
    return tuple(found)


def _build(maker: Builder, source: _Graph, bucket: Bucket, target: str, card: Card) -> BuiltEngine:
    network, graph = source.network, source.artifact
    shapes = source.shapes(bucket, card)
    key = EngineKey(
        component=network.component,
        weights=network.weights,
        config=network.config,
        source=source_digest(),
        graph=str(graph.record["graph"]),
        precision=source.precision,
        bucket=shapes,
        placement=dict.fromkeys(graph.record["nodes"], "function"),
        kernels=NO_KERNELS,
        library=maker.library(),
        gpu=target,
        driver="",
        flags=maker.flags(),
    )
    made: list[PlanFacts] = []

    def fill(folder: Path) -> dict[str, Any]:
        job = PlanJob(graph.path(GRAPH_FILE), shapes, target)
        made.append(maker.build(job, folder / PLAN_FILE))
        nodes = {"function": dict(graph.record["nodes"])}
        return {"bucket": list(bucket), "facts": made[0].to_dict(), "placed": nodes}

    return built(source.store.build(key, fill), reused=not made)


def find_engines(store: ArtifactStore, known: Mapping[str, Any], backend: str) -> list[BuiltEngine]:
    """All TRT engines of ``backend`` whose key has these values, their files compared; last used first.

    Raises:
        KeyMismatchError: there is none, but others of this backend; says in what the nearest of them differs.
        CompileError: there is none at all, or one is damaged.
    """
    engines = [a for a in store.artifacts() if is_engine(a) and a.key["library"].split()[0] == backend]
    wrong = {artifact.folder: _differing(known, artifact) for artifact in engines}
    found = [artifact for artifact in engines if not wrong[artifact.folder]]
    if found:
        return [built(read_artifact(artifact.folder)) for artifact in found]
    if not engines:
        raise CompileError(f"nothing was built by {backend} in {store.root}; build it with: glimt compile")
    raise KeyMismatchError(f"{store.root} (the nearest of {len(engines)})", min(wrong.values(), key=len))


def _differing(known: Mapping[str, Any], artifact: Artifact) -> dict[str, tuple[Any, Any]]:
    return differences(known, {name: artifact.key[name] for name in known})


def default_store() -> ArtifactStore:
    """The user's own."""
    import os

    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return ArtifactStore(Path(home, "glimt", "engines").expanduser())

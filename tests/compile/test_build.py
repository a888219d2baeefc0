"""Plan files that TensorRT-RTX really builds here, and what becomes of everything that can go wrong on the way.

What a builder cannot be brought to do here (fail in the middle, run out of disk) a stand-in for it does.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.compile_report import CASES, TABLE, TARGETS, build, row, row_name

import glimt
from compile import exported
from compile.builders import Builder, TinyCard, exported_once, network
from glimt.compile import build as building
from glimt.compile.backends import PlanJob
from glimt.compile.backends import builder as real_builder
from glimt.compile.build import build_engines, find_engines
from glimt.compile.export import GRAPH_FILE, export
from glimt.compile.graphs import TransformerGraph
from glimt.compile.record import PLAN_FILE, Build, BuiltEngine, is_engine
from glimt.compile.spec import CompileSpec
from glimt.compile.store import ArtifactStore
from glimt.errors import CompileError, KeyMismatchError, MissingDependencyError, RequestError
from models import tiny

TESTED = [name for name, case in CASES.items() if case.tested]
SPEC = CompileSpec(buckets=[(96, 96, 33), (32, 48, 1)], targets=["sm_89", "sm_120"])


# ---- really built ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    root = tmp_path_factory.mktemp("engines")
    return {name: build(name, TARGETS, root / name) for name in TESTED}


@pytest.mark.slow
def test_the_committed_table_is_what_is_built(builds: dict[str, Build]) -> None:
    """Counts to the last one, bytes to one percent: a lost fusion or a grown arena is seen in review, not on a card."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    engines = {row_name(name, engine): engine for name, made in builds.items() for engine in made.engines}
    assert {engine.artifact.key["library"] for engine in engines.values()} == {table["library"]}, "write it anew"
    assert set(engines) == set(table["rows"])
    for name, engine in engines.items():
        for field, value in row(engine).items():
            expected = table["rows"][name][field]
            assert value == pytest.approx(expected, rel=0.01 if field.endswith("_bytes") else 0), (name, field)


def test_all_attention_is_fused(builds: dict[str, Build]) -> None:
    for name, made in builds.items():
        config = CASES[name].config
        layers = 8 if config is None else config.num_layers
        for engine in made.engines:
            assert engine.fused and engine.facts.attentions == 2 * layers  # itself and the text


def test_the_arena_is_no_larger_than_what_passes_through(builds: dict[str, Build]) -> None:
    """Four times the widest of all tensors, the MLP's: nothing is kept for each layer, and of attention's table of all
    pairs of tokens not even one head's is laid down for each prompt."""
    config = CASES["wan-1.3b-2-blocks"].config
    assert config is not None
    tokens = 21 * 30 * 52
    for engine in builds["wan-1.3b-2-blocks"].engines:
        assert engine.facts.activation_bytes is not None
        assert engine.facts.activation_bytes < 4 * 2 * tokens * config.ffn_dim * 2
        assert engine.facts.activation_bytes < 2 * tokens**2 * 2


def test_a_build_says_what_it_is(builds: dict[str, Build]) -> None:
    made = builds["glimt-world"]
    text = str(made)
    for target in TARGETS:
        assert target in text
    assert "96x96x33" in text and "nothing was cut" in text and "no plan file was run" in text
    plain = json.loads(json.dumps(made.to_dict()))
    assert [engine["target"] for engine in plain["engines"]] == list(TARGETS)
    for engine in plain["engines"]:
        assert Path(engine["path"]).stat().st_size == engine["plan_bytes"]
        assert engine["placement"]["function"]["attention"] == 8 and engine["fused"] is True


@pytest.fixture
def load(builds: dict[str, Build]) -> Any:
    """Engine.load of the bundled model with what was built of it."""
    store = builds["glimt-world"].engines[0].artifact.folder.parent

    def loaded(**settings: Any) -> glimt.Engine:
        chosen = {"backend": "tensorrt-rtx", "device": "cpu", "engines": str(store)} | settings
        return glimt.Engine.load(config=glimt.EngineConfig(**chosen))

    return loaded


def test_loading_finds_the_build_and_says_that_there_is_no_card(load: Any) -> None:
    with pytest.raises(CompileError, match=r"runs on an NVIDIA GPU.*96x96x33 for sm_120.*'eager'") as caught:
        load()
    assert not isinstance(caught.value, KeyMismatchError)


def test_loading_says_in_which_fields_a_build_differs(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyMismatchError) as caught:
        load(dtype="float16")
    assert caught.value.differences == {"precision": ("fp16", "bf16")}
    monkeypatch.setattr("glimt.compile.engine_key.source_digest", lambda: "0" * 64)
    with pytest.raises(KeyMismatchError) as caught:
        load(dtype="float16")
    assert caught.value.fields == ("precision", "source")


def test_loading_looks_into_the_plan_files(load: Any, builds: dict[str, Build]) -> None:
    path = builds["glimt-world"].engines[0].artifact.path(PLAN_FILE)
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CompileError, match="is not what was written"):
            load()
        path.write_bytes(content[:-1])
        with pytest.raises(CompileError, match="bytes"):
            load()
    finally:
        path.write_bytes(content)


def test_loading_from_nothing_says_how_to_build(load: Any, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="glimt compile"):
        load(engines=str(tmp_path / "none"))


def test_full_tensorrt_is_not_here_and_says_how_to_get_it(load: Any, tmp_path: Path) -> None:
    spec = CompileSpec(buckets=[(96, 96, 33)], targets=["sm_90"], backend="tensorrt")
    with pytest.raises(MissingDependencyError, match=r"glimt\[tensorrt\]"):
        glimt.Engine.open(device="cpu", engines=str(tmp_path)).compile(spec)
    with pytest.raises(MissingDependencyError, match=r"glimt\[tensorrt\]"):
        load(backend="tensorrt")


@pytest.mark.parametrize("precision", ["fp32"])
def test_a_graph_without_fused_attention_is_refused_by_name(precision: str, tmp_path: Path) -> None:
    """What a spec refuses beforehand the builder refuses too: attention is never taken apart."""
    spec, graph = exported.graph("t2v", precision)
    sizes = {"t": 1, "y": 2, "x": 3, "text": 4}
    shapes = {port.name: (port.shape(sizes),) * 3 for port in spec.inputs}
    with pytest.raises(CompileError, match=r"made no plan file for sm_89"):
        real_builder("tensorrt-rtx").build(PlanJob(graph.path, shapes, "sm_89"), tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(CompileError, match=r"does not take graph\.onnx"):
        real_builder("tensorrt-rtx").build(PlanJob(tmp_path / "graph.onnx", {}, "sm_89"), tmp_path / "plan")


# ---- with a stand-in for the builder ---------------------------------------------------------------------------------


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(builder: Builder) -> Builder:
        monkeypatch.setattr(building, "builder", lambda name: builder)
        monkeypatch.setattr(building, "write_graph", exported_once)
        return builder

    return put


def made(store: ArtifactStore, spec: CompileSpec = SPEC, **changes: Any) -> list[BuiltEngine]:
    return list(build_engines(spec, [network(**changes)], TinyCard(), store, guided=True))


def test_one_plan_for_each_size_and_card_and_none_twice(use: Any, tmp_path: Path) -> None:
    builder, store = use(Builder()), ArtifactStore(tmp_path)
    engines = made(store)
    assert [(str(engine.bucket), engine.target) for engine in engines] == [
        ("96x96x33", "sm_89"), ("96x96x33", "sm_120"), ("48x32x1", "sm_89"), ("48x32x1", "sm_120"),
    ]  # fmt: skip
    assert len({engine.artifact.folder for engine in engines}) == 4 and not any(e.reused for e in engines)
    shapes = builder.jobs[0].shapes
    assert shapes["latents"] == ((1, 4, 9, 12, 12),) * 3
    assert shapes["rope_cos"] == ((9, 6, 6, 7),) * 3
    assert [shape[:2] for shape in shapes["text_k.1"]] == [(2, 1), (2, 64), (2, 512)]

    def never(dtype: torch.dtype) -> Any:
        raise AssertionError("the graph is there: no weights are needed")

    again = made(store, load=never)
    assert len(builder.jobs) == 4 and all(engine.reused for engine in again)
    assert [engine.artifact.folder for engine in again] == [engine.artifact.folder for engine in engines]
    assert "was there" in str(Build(SPEC, tuple(again))) and "not told" in str(Build(SPEC, tuple(again)))


def test_the_graph_is_what_exporting_gives(use: Any, tmp_path: Path) -> None:
    builder = use(Builder())
    made(ArtifactStore(tmp_path / "store"))
    by_itself = export(TransformerGraph(network().load(torch.bfloat16), prompts=2), tmp_path / "graph")
    for name in (GRAPH_FILE, "weights.bin"):
        assert (builder.jobs[0].graph.with_name(name)).read_bytes() == by_itself.artifact.read(name)


@pytest.mark.parametrize(
    "change",
    [{"weights": "v" * 64}, {"config": "d" * 64}, {"component": "transformer_2"}],
    ids=["weights", "config", "component"],
)
def test_what_is_another_network_is_built_anew(change: dict[str, str], use: Any, tmp_path: Path) -> None:
    builder, store = use(Builder()), ArtifactStore(tmp_path)
    one = CompileSpec(buckets=[(32, 48, 1)], targets=["sm_89"])
    made(store, one)
    assert [engine.reused for engine in made(store, one, **change)] == [False]
    assert len(builder.jobs) == 2
    known = {"component": "transformer", "weights": "w" * 64, "config": "c" * 64}
    assert len(find_engines(store, known, "tensorrt-rtx")) == 1
    with pytest.raises(KeyMismatchError) as caught:
        find_engines(store, {**known, "weights": "u" * 64, "gpu": "sm_86"}, "tensorrt-rtx")
    assert caught.value.fields == ("gpu", "weights")


def test_another_version_guidance_or_card_is_another_plan(use: Any, tmp_path: Path) -> None:
    store, one = ArtifactStore(tmp_path), CompileSpec(buckets=[(32, 48, 1)], targets=["sm_89"])
    use(Builder())
    folders = {made(store, one)[0].artifact.folder}
    folders |= {made(store, dataclasses.replace(one, **change))[0].artifact.folder for change in (
        {"guided": False}, {"targets": ["sm_120"]}, {"buckets": [(32, 32, 1)]},
    )}  # fmt: skip
    use(Builder(version="1.1"))
    folders.add(made(store, one)[0].artifact.folder)
    assert len(folders) == 5
    assert len([artifact for artifact in store.artifacts() if not is_engine(artifact)]) == 2  # graphs


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CompileError("no fused kernel"), "no fused kernel"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (KeyboardInterrupt(), ""),
    ],
    ids=["refused", "full disk", "interrupted"],
)
def test_a_build_that_fails_leaves_nothing_but_what_was_whole(
    error: BaseException, says: str, use: Any, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    use(Builder(error))
    with pytest.raises(type(error) if says != "the disk is full" else CompileError, match=says or None):
        made(store)
    (graph,) = store.artifacts()
    assert not is_engine(graph) and store.verify() == {graph.folder.name: ()}
    assert {path.name for path in tmp_path.iterdir()} == {"locks", graph.folder.name}
    use(Builder())
    assert len(made(store)) == 4


def test_nothing_is_begun_for_what_cannot_be_done(use: Any, tmp_path: Path) -> None:
    use(Builder())
    with pytest.raises(CompileError, match="no sm_121"):
        made(ArtifactStore(tmp_path), dataclasses.replace(SPEC, targets=["sm_89", "sm_121"]))
    with pytest.raises(RequestError, match="nearest: 33 or 37"):
        made(ArtifactStore(tmp_path), dataclasses.replace(SPEC, buckets=[(96, 96, 34)]))
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_two_experts_has_engines_for_both(tmp_path: Path, use: Any) -> None:
    use(Builder())
    engine = glimt.Engine.open(tiny.folder("t2v-a14b"), device="cpu", engines=str(tmp_path))
    made_of_both = engine.compile(CompileSpec(buckets=[(32, 32, 5)], targets=["sm_89"]))
    assert [built.component for built in made_of_both.engines] == ["transformer", "transformer_2"]
    first, second = (built.artifact.key for built in made_of_both.engines)
    assert first["weights"] != second["weights"] and first["graph"] == second["graph"]


def test_a_model_of_two_images_has_room_for_the_tokens_of_both(tmp_path: Path, use: Any) -> None:
    builder = use(Builder())
    engine = glimt.Engine.open(tiny.folder("flf2v"), device="cpu", engines=str(tmp_path))
    engine.compile(CompileSpec(buckets=[(32, 32, 5)], targets=["sm_89"]))
    assert builder.jobs[0].shapes["image_k.0"] == ((2, 2 * tiny.IMAGE_TOKENS, 3, 14),) * 3


def test_nothing_runs_eagerly_by_another_name() -> None:
    with pytest.raises(RequestError) as caught:
        glimt.EngineConfig(backend="tensorrt-rtx", quality="exact")
    assert caught.value.fields == ("backend",)
    with pytest.raises(RequestError) as caught:
        glimt.EngineConfig(backend="tensorrt-rtx", precision="int8", quality="lossy")
    assert caught.value.fields == ("backend",)

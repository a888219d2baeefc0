"""A plan is loaded only by the key it was built from; every field counts, and an error names those that differ."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from glimt.compile import engine_key
from glimt.compile.engine_key import EngineKey, kernels_digest
from glimt.compile.store import ArtifactStore, Key
from glimt.errors import CompileError, KeyMismatchError

KEY = EngineKey(
    component="transformer",
    weights="11" * 32,
    config="22" * 32,
    source="55" * 32,
    graph="33" * 32,
    precision="bf16",
    bucket={"latents": ((1, 16, 1, 60, 104), (1, 16, 21, 60, 104), (1, 16, 21, 90, 160))},
    placement={"attention": "cut", "ada_norm": "function"},
    kernels="44" * 32,
    library="tensorrt-rtx 1.7.1.116",
    gpu="sm_89",
    driver="580",
    flags={"max_aux_streams": 0, "sparse_weights": False},
)
SHAPES = KEY.bucket["latents"]
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "component": ({"component": "decoder_first"}, "component"),
    "weights": ({"weights": "11" * 31 + "10"}, "weights"),
    "config": ({"config": "22" * 31 + "23"}, "config"),
    "source": ({"source": "56" + "55" * 31}, "source"),
    "graph": ({"graph": "34" + "33" * 31}, "graph"),
    "precision": ({"precision": "fp8"}, "precision"),
    "bucket": ({"bucket": {"latents": (SHAPES[0], SHAPES[1], (1, 16, 21, 90, 161))}}, "bucket.latents"),
    "another input": ({"bucket": {"latents": SHAPES, "temb": SHAPES}}, "bucket.temb"),
    "placement": ({"placement": {"attention": "inline", "ada_norm": "function"}}, "placement.attention"),
    "kernels": ({"kernels": "45" * 32}, "kernels"),
    "library": ({"library": "tensorrt-rtx 1.7.1.117"}, "library"),
    "gpu": ({"gpu": "sm_120"}, "gpu"),
    "driver": ({"driver": "590"}, "driver"),
    "flags": ({"flags": {"max_aux_streams": 1, "sparse_weights": False}}, "flags.max_aux_streams"),
    "one flag more": ({"flags": {**KEY.flags, "refit": True}}, "flags.refit"),
}


def fill(folder: Path) -> dict[str, Any]:
    (folder / "plan.0").write_bytes(b"plan" * 1000)
    return {"seconds": 1.5}


def test_every_field_is_changed_below() -> None:
    changed = {name for change, _ in CHANGES.values() for name in change}
    assert changed == {field.name for field in dataclasses.fields(EngineKey)}


@pytest.mark.parametrize("case", CHANGES)
def test_a_plan_built_with_another_field_is_refused_and_the_field_named(case: str, tmp_path: Path) -> None:
    change, field = CHANGES[case]
    other = dataclasses.replace(KEY, **change)
    assert other.digest != KEY.digest
    store = ArtifactStore(tmp_path)
    built = store.build(KEY, fill)
    with pytest.raises(KeyMismatchError) as error:
        store.load(other)
    assert error.value.fields == (field,)
    assert f"{field}: asked " in str(error.value)
    # Nor under the other's name: a folder that was renamed, or copied from another machine.
    shutil.copytree(built.folder, tmp_path / other.digest)
    with pytest.raises(KeyMismatchError) as error:
        store.load(other)
    assert error.value.fields == (field,) and other.digest in str(error.value)
    assert store.load(KEY).read("plan.0") == b"plan" * 1000


def test_several_differences_are_all_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.build(dataclasses.replace(KEY, gpu="sm_86", library="tensorrt 11.4.0.106", weights="99" * 32), fill)
    store.build(dataclasses.replace(KEY, gpu="sm_86", driver="590"), fill)
    with pytest.raises(KeyMismatchError) as error:
        store.load(KEY)
    assert error.value.differences == {"gpu": ("sm_89", "sm_86"), "driver": ("580", "590")}  # of the nearest


def test_the_digest_depends_on_values_alone() -> None:
    reordered = dataclasses.replace(KEY, placement=dict(reversed(list(KEY.placement.items()))))
    assert reordered.digest == KEY.digest
    aslists = dataclasses.replace(KEY, bucket={"latents": tuple(list(s) for s in SHAPES)})
    assert aslists.digest == KEY.digest
    assert len({dataclasses.replace(KEY, **change).digest for change, _ in CHANGES.values()}) == len(CHANGES)


def test_a_key_that_says_nothing_is_refused_whole() -> None:
    with pytest.raises(CompileError) as error:
        dataclasses.replace(
            KEY, weights="", gpu="", placement={"attention": "outside"}, bucket={"latents": ((2,), (1,), (3,))}
        )
    assert [problem.split()[0] for problem in error.value.problems] == ["weights", "gpu", "bucket", "placement"]


def test_nothing_built_is_said_to_be_so(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class OtherKey(Key):
        name: str

    store = ArtifactStore(tmp_path / "none")
    with pytest.raises(CompileError, match="nothing of this kind was built"):
        store.load(KEY)
    store.build(OtherKey("something"), fill)
    with pytest.raises(CompileError, match="nothing of this kind was built"):
        store.load(KEY)


def test_the_digest_of_the_kernels_is_that_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "glimt_kernels" / "attention"
    package.mkdir(parents=True)
    for name in ("__init__.py", "attention/triton.py", "attention/hopper.cu", "_native.abi3.so", "README.md"):
        (tmp_path / "glimt_kernels" / name).write_text(name)

    class Spec:
        submodule_search_locations = (str(tmp_path / "glimt_kernels"),)

    monkeypatch.setattr(engine_key, "find_spec", lambda name: Spec)

    def digest() -> str:
        kernels_digest.cache_clear()
        return kernels_digest()

    before = digest()
    (tmp_path / "glimt_kernels/README.md").write_text("words do not count")
    assert digest() == before
    for name in ("attention/triton.py", "attention/hopper.cu", "_native.abi3.so"):
        (tmp_path / "glimt_kernels" / name).write_text(f"{name}!")
        after = digest()
        assert after != before
        before = after
    (package / "triton.py").rename(package / "moved.py")
    assert digest() != before
    kernels_digest.cache_clear()


def test_the_kernels_of_this_installation_have_a_digest() -> None:
    kernels_digest.cache_clear()
    assert len(kernels_digest()) == 64
    assert len(engine_key._kernel_files([Path(engine_key.__file__).parents[3] / "kernels/glimt_kernels"])) > 50

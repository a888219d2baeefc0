"""What was built comes back whole or not at all: damage, full disks, broken-off builds, and several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from glimt.compile import store as store_module
from glimt.compile.store import SIDECAR, ArtifactStore, Key, read_artifact, write_artifact
from glimt.errors import CompileError, KeyMismatchError


@dataclasses.dataclass(frozen=True)
class PlanKey(Key):
    name: str
    flags: Mapping[str, int] = dataclasses.field(default_factory=dict)


KEY, OTHER = PlanKey("a", {"x": 1}), PlanKey("b", {"x": 1})
PLAN, SECOND = bytes(range(256)) * 20, b"second segment"


def fill(folder: Path) -> dict[str, Any]:
    (folder / "plan.0").write_bytes(PLAN)
    (folder / "plan.1").write_bytes(SECOND)
    return {"seconds": 2.0, "cut": ["attention"]}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def leavings(store: ArtifactStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name.startswith("."))


def test_what_was_built_comes_back(store: ArtifactStore) -> None:
    built = store.build(KEY, fill)
    loaded = store.load(KEY)
    assert loaded == built and loaded.folder.name == KEY.digest
    assert (loaded.read("plan.0"), loaded.read("plan.1")) == (PLAN, SECOND)
    assert loaded.record == {"seconds": 2.0, "cut": ["attention"]}
    assert loaded.num_bytes == len(PLAN) + len(SECOND)
    sidecar = json.loads((loaded.folder / SIDECAR).read_text())
    assert sidecar["key"] == {"name": "a", "flags": {"x": 1}} and sidecar["digest"] == KEY.digest
    with pytest.raises(CompileError, match=r"no file 'plan.2'; it has plan.0, plan.1"):
        loaded.path("plan.2")


def test_what_is_there_is_not_built_again(store: ArtifactStore) -> None:
    store.build(KEY, fill)
    store.build(KEY, lambda folder: pytest.fail("built twice"))
    store.build(OTHER, fill)
    assert {artifact.key["name"] for artifact in store.artifacts()} == {"a", "b"}


def truncate(folder: Path) -> None:
    os.truncate(folder / "plan.0", len(PLAN) - 1)


def lengthen(folder: Path) -> None:
    with (folder / "plan.0").open("ab") as stream:
        stream.write(b"!")


def tamper(folder: Path) -> None:
    content = bytearray(PLAN)
    content[1234] ^= 1
    (folder / "plan.0").write_bytes(content)


def swap(folder: Path) -> None:
    (folder / "plan.0").rename(folder / "x")
    (folder / "plan.1").rename(folder / "plan.0")
    (folder / "x").rename(folder / "plan.1")


def edit_sidecar(folder: Path) -> None:
    path = folder / SIDECAR
    path.write_text(path.read_text().replace('"seconds": 2.0', '"seconds": 1.0'))


DAMAGE: dict[str, tuple[Any, str]] = {
    "truncated": (truncate, r"plan.0: has 5119 bytes, 5120 were written"),
    "lengthened": (lengthen, r"plan.0: has 5121 bytes, 5120 were written"),
    "one bit": (tamper, r"plan.0: is not what was written"),
    "swapped": (swap, r"plan.0: has 14 bytes, 5120 were written"),
    "missing": (lambda folder: (folder / "plan.1").unlink(), r"plan.1: is missing"),
    "a stranger": (lambda folder: (folder / "plan.2").write_bytes(b""), r"plan.2: is not among the files"),
    "no sidecar": (lambda folder: (folder / SIDECAR).unlink(), rf"{SIDECAR}: is missing"),
    "half a sidecar": (lambda folder: os.truncate(folder / SIDECAR, 100), r"was cut short"),
    "a sidecar that was edited": (edit_sidecar, r"was changed after it was written"),
    "an empty sidecar": (lambda folder: (folder / SIDECAR).write_text("{}"), r"is no sidecar of glimt"),
    "another sidecar": (lambda folder: (folder / SIDECAR).write_text("[1]"), r"is no sidecar of glimt"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_an_error_that_names_it_and_a_build_mends_it(case: str, store: ArtifactStore) -> None:
    damage, message = DAMAGE[case]
    damage(store.build(KEY, fill).folder)
    with pytest.raises(CompileError, match=message):
        store.load(KEY)
    assert store.verify()[KEY.digest] != ()
    mended = store.build(KEY, fill)
    assert store.load(KEY).read("plan.0") == PLAN and store.verify() == {KEY.digest: ()}
    assert mended.folder == store.root / KEY.digest and leavings(store) == []


def test_files_of_two_plans_swapped_are_found_out(store: ArtifactStore) -> None:
    """Of the same size, each whole by itself."""
    a = store.build(KEY, fill)
    b = store.build(OTHER, lambda folder: (folder / "plan.0").write_bytes(PLAN[::-1]) and None)
    (b.folder / "plan.0").replace(b.folder / "kept")
    (a.folder / "plan.0").replace(b.folder / "plan.0")
    (b.folder / "kept").replace(a.folder / "plan.0")
    for key in (KEY, OTHER):
        with pytest.raises(CompileError, match="is not what was written"):
            store.load(key)


def test_whole_folders_swapped_are_found_out(store: ArtifactStore) -> None:
    a, b = store.build(KEY, fill).folder, store.build(OTHER, fill).folder
    a.rename(store.root / "x")
    b.rename(a)
    (store.root / "x").rename(b)
    with pytest.raises(KeyMismatchError) as error:
        store.load(KEY)
    assert error.value.differences == {"name": ("a", "b")}
    assert set(store.verify()) == {KEY.digest, OTHER.digest} and all(store.verify().values())


def test_bytes_are_checked_as_they_are_read(store: ArtifactStore) -> None:
    loaded = store.build(KEY, fill)
    tamper(loaded.folder)
    with pytest.raises(CompileError, match="is not what was written"):
        loaded.read("plan.0")


def test_errors_survive_pickling() -> None:
    error = KeyMismatchError("store", {"gpu": ("sm_89", "sm_120")})
    again = pickle.loads(pickle.dumps(error))
    assert (again.fields, str(again)) == (("gpu",), str(error))


# ---- builds that fail ------------------------------------------------------------------------------------------------


def to_full_disk(folder: Path) -> None:
    (folder / "plan.0").write_bytes(PLAN)
    with Path("/dev/full").open("wb") as stream:  # the kernel's own ENOSPC
        stream.write(PLAN)


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(CompileError, match=r"the disk is full .*; nothing was kept, make room and build again"):
        store.build(KEY, to_full_disk)
    assert leavings(store) == [] and store.artifacts() == []
    assert store.build(KEY, fill).read("plan.0") == PLAN


@pytest.mark.parametrize("step", ["fsync", "rename", "sidecar"])
def test_a_store_whose_own_writes_fail_leaves_nothing(
    step: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(store_module.os, "fsync", full)
        else:
            patch.setattr(*((Path, "rename") if step == "rename" else (store_module, "_write_sidecar")), full)
        with pytest.raises(CompileError, match="the disk is full"):
            store.build(KEY, fill)
    assert leavings(store) == [] and not (store.root / KEY.digest).exists()
    assert store.build(KEY, fill).read("plan.0") == PLAN


def test_a_build_that_fails_leaves_nothing_and_its_error_is_its_own(store: ArtifactStore) -> None:
    def wrong(folder: Path) -> None:
        (folder / "plan.0").write_bytes(PLAN)
        raise RuntimeError("no tactic")

    with pytest.raises(RuntimeError, match="no tactic"):
        store.build(KEY, wrong)
    assert leavings(store) == [] and not (store.root / KEY.digest).exists()


def test_a_build_gives_plain_files_only(store: ArtifactStore) -> None:
    with pytest.raises(CompileError, match="link is none"):
        store.build(KEY, lambda folder: (folder / "link").symlink_to("/etc/hostname"))
    assert leavings(store) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match=r"file: cannot be written: Not a directory"):
        ArtifactStore(tmp_path / "file").build(KEY, fill)


def test_a_folder_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    def late(folder: Path) -> tuple[Key, dict[str, Any]]:
        write_artifact(tmp_path / "late", lambda other: (KEY, fill(other)))  # by another, while this one builds
        return KEY, fill(folder)

    write_artifact(tmp_path / "graph", lambda folder: (KEY, fill(folder)))
    with pytest.raises(CompileError, match="is there already and not empty"):
        write_artifact(tmp_path / "graph", lambda folder: pytest.fail("built for nothing"))
    with pytest.raises(CompileError, match="is there already and not empty"):
        write_artifact(tmp_path / "late", late)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "late"]
    assert read_artifact(tmp_path / "graph", KEY).read("plan.0") == PLAN


# ---- several processes -----------------------------------------------------------------------------------------------

BUILDER = """
import sys, time
from pathlib import Path
from compile.test_store import KEY, PLAN, fill
from glimt.compile.store import ArtifactStore
root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def slow(folder):
    with log.open("a") as stream:
        stream.write("built\\n")
    (folder / "plan.0").write_bytes(PLAN[:100])
    (root / "half-way").touch()
    time.sleep(seconds)
    return fill(folder)
assert ArtifactStore(root).build(KEY, slow).read("plan.0") == PLAN
"""


def builder(store: ArtifactStore, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", BUILDER, str(store.root), str(log), str(seconds)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} never came")


def test_of_several_processes_one_builds_and_none_sees_half(store: ArtifactStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = builder(store, log, 1.0)
    wait_for(store.root / "half-way")
    with pytest.raises(CompileError):  # while it is being built there is nothing to load
        store.load(KEY)
    assert store.prune() == [] and store.verify() == {}  # and nothing to tidy up
    others = [builder(store, log, 1.0) for _ in range(2)]
    assert [process.wait() for process in (first, *others)] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert store.load(KEY).read("plan.0") == PLAN and leavings(store) == []


def test_a_build_that_was_killed_leaves_what_the_next_or_prune_takes_away(store: ArtifactStore, tmp_path: Path) -> None:
    for tidy in ("prune", "build"):
        (store.root / "half-way").unlink(missing_ok=True)
        process = builder(store, tmp_path / "log", 60.0)
        wait_for(store.root / "half-way")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(leavings(store)) == 1
        with pytest.raises(CompileError):
            store.load(KEY)
        if tidy == "prune":
            assert store.prune() == [KEY.digest]
        else:
            assert store.build(KEY, fill).read("plan.0") == PLAN
        assert leavings(store) == []


# ---- pruning ---------------------------------------------------------------------------------------------------------


def test_prune_keeps_what_was_used_last_within_a_size(store: ArtifactStore) -> None:
    keys = [PlanKey(name) for name in "abcd"]
    for age, key in enumerate(keys):
        folder = store.build(key, fill).folder
        os.utime(folder, (1000 + age, 1000 + age))
    store.load(keys[0])  # used just now
    size = len(PLAN) + len(SECOND)
    assert store.prune(max_bytes=2 * size + 1) == [keys[2].digest, keys[1].digest]
    assert {artifact.key["name"] for artifact in store.artifacts()} == {"a", "d"}
    assert store.prune(keep=lambda artifact: artifact.key["name"] == "a") == [keys[3].digest]
    truncate(store.root / keys[0].digest)
    assert store.prune() == [keys[0].digest] and store.artifacts() == []


def test_prune_leaves_what_is_not_its_own(store: ArtifactStore) -> None:
    store.build(KEY, fill)
    (store.root / "notes").mkdir()
    (store.root / "notes/todo").write_text("mine")
    assert store.prune(max_bytes=0) == [KEY.digest]
    assert (store.root / "notes/todo").read_text() == "mine"

"""Built things on disk: folders whose name is the digest of everything that makes their contents what they are.

    root/<digest of the key>/sidecar.json   key in the clear, size and SHA-256 of each file, record of the build
                             plan.0 ...     what was built
    root/locks/<digest>                     held while one process builds it

A folder appears whole or not at all: it is filled under another name, flushed, and renamed. Loading compares the key
field by field and every file with its SHA-256, so that what is not what was asked for is an error that says why. This
guards against accidents; who may write in the folder can forge a sidecar along with a plan. Standard library only.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.errors import CompileError, KeyMismatchError

SIDECAR = "sidecar.json"
FORMAT = 1
_STAGING, _LOCKS = ".staging-", "locks"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Key:
    """Base of keys: a dataclass of plain values, whose digest names what was made from them."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it: no tuples."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))
        return values

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the key as canonical JSON."""
        return _seal(self.plain())


def differences(asked: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two keys differ, nested ones as ``outer.inner``, each with both values."""
    fields: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*asked, *found}):
        a, b, path = asked.get(name), found.get(name), f"{prefix}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            fields |= differences(a, b, f"{path}.")
        elif a != b or (name in asked) != (name in found):
            fields[path] = a, b
    return fields


@dataclass(frozen=True)
class Artifact:
    """One folder, as its sidecar describes it.

    Attributes:
        key: what it was made from, in plain values.
        files: name -> ``{"bytes": ..., "sha256": ...}``.
        record: what the build had to say; not part of the key.
    """

    folder: Path
    key: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    record: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def path(self, name: str) -> Path:
        """Where file ``name`` lies. Raises CompileError where there is none of that name."""
        if name not in self.files:
            raise CompileError(f"{self.folder} has no file {name!r}; it has {', '.join(sorted(self.files))}")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Contents of file ``name``; the very bytes that are returned are checked."""
        content = _read(self.path(name))
        problem = _content_problem(
            self.folder / name, self.files[name], len(content), hashlib.sha256(content).hexdigest()
        )
        if problem:
            raise CompileError(problem)
        return content


def write_artifact(folder: Path, fill: Callable[[Path], tuple[Key, Mapping[str, Any]]]) -> Artifact:
    """Make ``folder``: ``fill`` puts files into the folder it is given and returns the key and the record.

    Raises:
        CompileError: ``folder`` is there already and not empty, or cannot be written; nothing is left of the attempt.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        key, record = fill(staging)
        _write_sidecar(staging, key.plain(), _flushed(staging), json.loads(json.dumps(dict(record))))
        staging.chmod(0o755)
        staging.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _read_sidecar(folder)


def read_artifact(folder: Path, asked: Key | None = None) -> Artifact:
    """What :func:`write_artifact` made, every byte compared with the sidecar.

    Raises:
        KeyMismatchError: it was made from another key than ``asked``; names the fields.
        CompileError: a file is missing, cut short, changed or not one of its own.
    """
    artifact = _read_sidecar(folder)
    if asked is not None:
        found = differences(asked.plain(), artifact.key)
        if found:
            raise KeyMismatchError(str(folder), found)
    problems = [problem for name in artifact.files if (problem := _file_problem(folder / name, artifact.files[name]))]
    strangers = {path.name for path in folder.iterdir()} - {SIDECAR, *artifact.files}
    problems += [f"{folder / name}: is not among the files that were built" for name in sorted(strangers)]
    if problems:
        raise CompileError(*problems)
    return artifact


class ArtifactStore:
    """A folder of artifacts, each under the digest of its key. Safe for several processes on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, key: Key) -> Artifact:
        """The artifact of ``key``.

        Raises:
            KeyMismatchError: there is none, but a similar one; or it was made from another key. Names the fields.
            CompileError: there is none at all, or it is damaged.
        """
        folder = self.root / key.digest
        if not folder.is_dir():
            raise self._missing(key)
        artifact = read_artifact(folder, key)
        with suppress(OSError):  # when it was last wanted, for prune; a read-only store does without
            os.utime(folder)
        return artifact

    def build(self, key: Key, fill: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
        """The artifact of ``key``, made by ``fill`` unless it is there.

        ``fill`` puts files into the folder it is given and returns the record. Of several processes one builds, the
        others wait and take what it made. A damaged artifact is made anew.

        Raises:
            CompileError: the store cannot be written (a full disk, no permission); nothing is left of the attempt.
        """
        folder = self.root / key.digest
        with self._lock(key.digest):
            self._clear_staging(key.digest)
            if folder.is_dir():
                with suppress(CompileError):
                    return read_artifact(folder, key)
                self._remove(folder)
            return write_artifact(folder, lambda staging: (key, fill(staging) or {}))

    def artifacts(self) -> list[Artifact]:
        """All whose sidecar can be read, newest use first; their files are not compared."""
        found = []
        for folder in self._folders():
            with suppress(CompileError):
                found.append((folder.stat().st_mtime, _read_sidecar(folder)))
        return [artifact for _, artifact in sorted(found, key=lambda pair: (-pair[0], pair[1].folder.name))]

    def verify(self) -> dict[str, tuple[str, ...]]:
        """Every folder's name and what is wrong with it; nothing for a whole one."""
        return {folder.name: _problems(folder) for folder in self._folders()}

    def prune(
        self, max_bytes: int | None = None, keep: Callable[[Artifact], bool] = lambda artifact: True
    ) -> list[str]:
        """Remove leavings of broken-off builds, damaged artifacts, and those that ``keep`` refuses; of the rest keep
        the last used, as many as go into ``max_bytes``. What is being built is left alone. Names of what is gone.
        """
        gone, size = [], 0
        whole = {artifact.folder.name: artifact for artifact in self.artifacts() if not _problems(artifact.folder)}
        for name, artifact in whole.items():  # newest use first
            size += artifact.num_bytes
            if not keep(artifact) or (max_bytes is not None and size > max_bytes):
                size -= artifact.num_bytes
                gone.append(name)
        gone += [folder.name for folder in self._folders() if folder.name not in whole]
        return [name for name in [*gone, *self._staged()] if self._remove_unless_building(name)]

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and _is_digest(path.name))

    def _staged(self) -> list[str]:
        """Digests of which broken-off builds left something."""
        if not self.root.is_dir():
            return []
        names = (path.name.removeprefix(_STAGING) for path in self.root.glob(f"{_STAGING}*"))
        return sorted({name.rsplit("-", 1)[0] for name in names} - {folder.name for folder in self._folders()})

    def _missing(self, key: Key) -> CompileError:
        asked = key.plain()
        candidates = [
            differences(asked, artifact.key) for artifact in self.artifacts() if set(artifact.key) == set(asked)
        ]
        if not candidates:
            return CompileError(f"nothing of this kind was built in {self.root}; build it first")
        return KeyMismatchError(f"{self.root} (the nearest of {len(candidates)})", min(candidates, key=len))

    @contextmanager
    def _lock(self, digest: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of ``digest``. Raises BlockingIOError where another holds it and ``wait`` is false."""
        path = self.root / _LOCKS / digest
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(self.root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def _remove_unless_building(self, digest: str) -> bool:
        try:
            with self._lock(digest, wait=False):
                self._clear_staging(digest)
                self._remove(self.root / digest)
                return True
        except BlockingIOError:
            return False

    def _clear_staging(self, digest: str) -> None:
        """Under the lock of ``digest`` nobody fills these any more."""
        for path in self.root.glob(f"{_STAGING}{digest}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Take the folder from its name at once, so that none reads half of it; then its files."""
        doomed = self.root / f"{_STAGING}{folder.name}-removed"
        with suppress(FileNotFoundError):
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# ---- sidecars and files ----------------------------------------------------------------------------------------------


def _write_sidecar(folder: Path, key: Any, files: Mapping[str, Any], record: Any) -> None:
    body = {"format": FORMAT, "key": key, "digest": _seal(key), "files": files, "record": record}
    text = json.dumps({**body, "seal": _seal(body)}, indent=2, sort_keys=True, ensure_ascii=False)
    with (folder / SIDECAR).open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    _flush(folder)


def _read_sidecar(folder: Path) -> Artifact:
    path = folder / SIDECAR
    try:
        body = json.loads(_read(path))
        seal = body.pop("seal")
        if seal != _seal(body) or body["digest"] != _seal(body["key"]):
            raise CompileError(f"{path}: was changed after it was written; build anew")
        if body["format"] != FORMAT:
            raise CompileError(f"{path}: is of format {body['format']}, this glimt reads {FORMAT}; build anew")
        return Artifact(folder, body["key"], body["files"], body["record"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompileError(f"{path}: is no sidecar of glimt, or was cut short ({error}); build anew") from error


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _flushed(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, once all of it is on the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.is_symlink():
            raise CompileError(f"a build gives plain files; {path.name} is none")
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


def _file_problem(path: Path, entry: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        digest = _sha256(path) if size == entry["bytes"] else ""
    except FileNotFoundError:
        return f"{path}: is missing; build anew"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    return _content_problem(path, entry, size, digest)


def _content_problem(path: Path, entry: Mapping[str, Any], size: int, digest: str) -> str:
    if size != entry["bytes"]:
        return f"{path}: has {size} bytes, {entry['bytes']} were written; build anew"
    if digest != entry["sha256"]:
        return f"{path}: is not what was written (SHA-256 {digest[:12]}, not {entry['sha256'][:12]}); build anew"
    return ""


def _problems(folder: Path) -> tuple[str, ...]:
    """What is wrong with an artifact, its name included."""
    try:
        artifact = read_artifact(folder)
    except CompileError as error:
        return error.problems
    if _seal(artifact.key) != folder.name:
        return (f"{folder}: holds what was built as {_seal(artifact.key)}; build anew",)
    return ()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CompileError(f"{path}: is missing; build anew") from error
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    state, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_digest(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _unwritable(folder: Path, error: OSError) -> CompileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = ""
        with suppress(OSError):
            free = f"; {shutil.disk_usage(folder.parent).free} bytes are free there"
        return CompileError(
            f"{folder}: the disk is full ({error.strerror}){free}; nothing was kept, make room and build again"
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return CompileError(f"{folder}: is there already and not empty; remove it or name another")
    return CompileError(f"{folder}: cannot be written: {error.strerror or error}")

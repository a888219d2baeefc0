"""Output files that are either whole or not there.

Everything is written to a temporary file beside the target and moved over it at the end, so that a crash, a full disk
or Ctrl-C never leaves half a video under the name the user asked for, and never destroys the one that was there before.
Several files of one run can be made to appear together or not at all (``Together``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from glimt.errors import OutputError

StrPath = str | os.PathLike[str]
Publish = Callable[[Path, Path], None]  # ``publish``, or what a writer calls in its place

_REASONS = {
    errno.ENOSPC: "no space is left on the device; free some, or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
    errno.EFBIG: "the file would be larger than the file system or the limit of this process allows",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the file name is too long",
    errno.ENOENT: "the folder does not exist (any more)",
    errno.EIO: "the device reported an input/output error",
}


def as_output_error(path: StrPath, error: OSError) -> OutputError:
    """The operating system's complaint, as one sentence that says what to do."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {os.fspath(path)}: {reason}")


def resolve_target(path: StrPath, suffixes: tuple[str, ...]) -> Path:
    """The file that ``path`` stands for, links followed; OutputError unless it can be a file of one of ``suffixes``."""
    target = Path(os.path.realpath(path))
    if Path(path).suffix.lower() not in suffixes:
        names = " or ".join(suffixes)
        raise OutputError(f"cannot write {os.fspath(path)}: the name must end in {names}")
    if target.is_dir():
        raise OutputError(f"cannot write {os.fspath(path)}: it is a folder")
    if os.path.lexists(target) and not target.is_file():
        raise OutputError(f"cannot write {os.fspath(path)}: it is not a regular file")
    return target


def check_writable(path: StrPath, suffixes: tuple[str, ...], needed_bytes: int = 0) -> None:
    """Raise OutputError now if ``path`` could not be written later: meant to be called before hours of computing.

    Looks at the name, the folder, the right to create files in it (by creating and removing one) and the free space.
    """
    target = resolve_target(path, suffixes)
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {os.fspath(path)}: the folder {folder} does not exist; create it first")
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {os.fspath(path)}: the file is there and is write-protected")
    try:
        temporary = _create_beside(target)
        temporary.unlink()
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise as_output_error(path, error) from error
    if free_bytes < needed_bytes:
        raise OutputError(
            f"cannot write {os.fspath(path)}: about {needed_bytes / 2**20:.0f} MiB may be needed and "
            f"{free_bytes / 2**20:.0f} MiB are free in {folder}; free some space, or choose another folder"
        )


def _create_beside(target: Path) -> Path:
    """An empty new file in the folder of ``target`` with the permissions a normal new file gets (unlike mkstemp's)."""
    path = _hidden_beside(target)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path


def _hidden_beside(target: Path) -> Path:
    """A name in the folder of ``target`` that nobody has."""
    return target.with_name(f".{target.stem[:64]}-{secrets.token_hex(6)}.part{target.suffix}")


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target``, removed at the end if it is still there."""
    try:
        temporary = _create_beside(target)
    except OSError as error:
        raise as_output_error(target, error) from error
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def publish(temporary: Path, target: Path) -> None:
    """Make the whole content of ``temporary`` appear as ``target`` at once; a full disk shows here at the latest."""
    _move(temporary, target, target)


def _move(temporary: Path, place: Path, target: Path) -> None:
    """``temporary`` to ``place``, with all of it on the disk; an OutputError speaks of ``target``."""
    try:
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(place)
    except OSError as error:
        raise as_output_error(target, error) from error


class Together:
    """Files that appear at the end of a block, or none of them where it is left by an error.

    An interruption (KeyboardInterrupt) is no error: what is finished then was paid for, and appears.

    A writer is given ``together.publish`` in the place of :func:`publish`: until the end its finished file waits beside
    its target under a hidden name, and what was there before stays as it is.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

    def __enter__(self) -> Together:
        return self

    def publish(self, temporary: Path, target: Path) -> None:
        """Take all of ``temporary``, to be ``target`` at the end of the block; a full disk shows here at the latest."""
        waiting = _hidden_beside(target)
        self._waiting.append((waiting, target))
        try:
            _move(temporary, waiting, target)
        except BaseException:
            self._waiting.pop()
            waiting.unlink(missing_ok=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            keep = kind is None or issubclass(kind, KeyboardInterrupt)
            for waiting, target in self._waiting if keep else ():
                _move(waiting, target, target)
        except BaseException:
            for waiting, target in self._waiting:
                if not waiting.exists():  # so it has become the target
                    target.unlink(missing_ok=True)
            raise
        finally:
            for waiting, _ in self._waiting:
                waiting.unlink(missing_ok=True)

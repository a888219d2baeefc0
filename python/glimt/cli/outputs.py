"""The files of one ``glimt generate``: their names, their check before the work, and their writing during it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from glimt.check import MAX_VARIANTS
from glimt.cli.asking import Problems
from glimt.errors import OutputError
from glimt.video import files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glimt.request import ResolvedRequest
    from glimt.video.mp4 import VideoWriter


@dataclass(frozen=True)
class Outputs:
    """Where everything goes. ``videos``, ``webps`` and ``gifs`` have an entry for each variant, or none."""

    videos: tuple[Path, ...]
    webps: tuple[Path, ...]
    gifs: tuple[Path, ...]
    sheet: Path | None
    preview_dir: Path | None
    preview_every: int | None
    preview: str | None
    crf: int

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> Outputs:
        """As typed. With several variants each name gets its seed: ``out.mp4`` becomes ``out-7.mp4``, ``out-8.mp4``."""
        count = min(namespace.variants, MAX_VARIANTS)  # the request is refused if there are more
        seeds = range(namespace.seed, namespace.seed + count) if count > 1 else [None]

        def named(name: str | None) -> tuple[Path, ...]:
            return tuple(_with_seed(Path(name), seed) for seed in seeds) if name else ()

        return cls(
            videos=named(namespace.output),
            webps=named(namespace.webp),
            gifs=named(namespace.gif),
            sheet=Path(namespace.sheet) if namespace.sheet else None,
            preview_dir=Path(namespace.preview_dir) if namespace.preview_dir else None,
            preview_every=namespace.preview_every,
            preview=namespace.preview,
            crf=namespace.crf,
        )

    @property
    def keeps_frames(self) -> bool:
        """Whether something beside the mp4 needs the frames, which are then kept in memory."""
        return bool(self.webps or self.gifs or self.sheet)

    def check(self, num_frames: int = 1, height: int = 0, width: int = 0, fps: float = 1) -> None:
        """Raise the problems of all files now, before any work: names, folders, rights, room on the disk."""
        from glimt.video import animation, mp4, sheet

        problems = Problems()
        with problems.gathered():
            mp4.check_crf(self.crf)
        for path in self.videos:
            with problems.gathered():
                mp4.check_writable(path, len(self.videos) * num_frames, height, width)
        for path in (*self.webps, *self.gifs):
            with problems.gathered():
                animation.check_animation(path, fps)
        for paths, suffix in ((self.webps, ".webp"), (self.gifs, ".gif")):
            for path in paths[:1]:
                with problems.gathered():
                    files.resolve_target(path, (suffix,))
        if self.sheet is not None:
            with problems.gathered():
                files.check_writable(self.sheet, sheet.SUFFIXES)
        if self.preview_dir is not None:
            with problems.gathered():
                _check_folder(self.preview_dir)
        for option, value in (("--preview-every", self.preview_every), ("--preview", self.preview)):
            if self.preview_dir is None and value is not None:
                with problems.gathered():
                    raise OutputError(f"{option}: has no effect without --preview-dir, where previews are written to")
        problems.raise_any()


def _with_seed(path: Path, seed: int | None) -> Path:
    return path if seed is None else path.with_name(f"{path.stem}-{seed}{path.suffix}")


def _check_folder(folder: Path) -> None:
    """OutputError unless ``folder`` is one that can be written to, or can be made."""
    if folder.is_dir():
        allowed = os.access(folder, os.W_OK | os.X_OK)
    elif os.path.lexists(folder):
        raise OutputError(f"--preview-dir: {folder} is not a folder")
    elif not folder.parent.is_dir():
        raise OutputError(f"--preview-dir: {folder.parent} does not exist; create it first")
    else:
        allowed = os.access(folder.parent, os.W_OK | os.X_OK)
    if not allowed:
        raise OutputError(f"--preview-dir: no permission to write to {folder}")


@dataclass
class Take:
    """One finished video: what there is to say of it."""

    path: Path
    seed: int
    facts: dict[str, Any]
    clip: npt.NDArray[np.uint8] | None = None
    others: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Once the file is there under its name."""
        return {
            "path": str(self.path),
            "seed": self.seed,
            **self.facts,
            "bytes": self.path.stat().st_size,
            **self.others,
        }


class VideoFiles:
    """The files of a run while they are made: ``add`` takes chunks of any variant in the order in which they come.

    ``record`` is the settings record of the run; each mp4's has the request of its variant alone, and the
    implementations that ``finish`` is told ran. All files appear together at the end of the block. One that cannot be
    written costs them all; an interruption only unfinished ones.
    """

    def __init__(self, outputs: Outputs, resolved: ResolvedRequest, record: Mapping[str, Any]) -> None:
        self.outputs, self.resolved = outputs, resolved
        self.takes: list[Take] = []
        self._record = record
        self._together = files.Together()
        self._open: dict[int, VideoWriter] = {}
        self._kept: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def __enter__(self) -> VideoFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while self._open:
                self._open.popitem()[1].__exit__(kind, error, traceback)
        finally:
            self._together.__exit__(kind, error, traceback)

    def complete(self) -> None:
        """All videos are finished: add the contact sheet. The files appear when the block ends."""
        self._save_sheet()

    def add(self, variant: int, frames: npt.NDArray[np.uint8]) -> None:
        """Frames of one variant, the next after those that came before."""
        writer = self._open.get(variant) or self._begin(variant)
        writer.write(frames)
        if self.outputs.keeps_frames:
            self._kept.setdefault(variant, []).append(frames)

    def _begin(self, variant: int) -> VideoWriter:
        from glimt.video.mp4 import VideoWriter

        asked = self.resolved
        path, crf, publish = self.outputs.videos[variant], self.outputs.crf, self._together.publish
        writer = VideoWriter(path, asked.fps, asked.height, asked.width, crf=crf, publish=publish)
        self._open[variant] = writer.__enter__()
        return writer

    def finish(self, variant: int, implementations: Mapping[str, str]) -> None:
        """The frames of one variant are all there."""
        writer, asked = self._open[variant], self.resolved.variant(variant)
        writer.record = {**self._record, "request": asked.to_dict(), "implementations": dict(implementations)}
        del self._open[variant]
        writer.__exit__(None, None, None)
        facts = {
            "frames": writer.num_frames,
            "height": writer.height,
            "width": writer.width,
            "fps": float(writer.fps),
            "seconds": float(writer.num_frames / writer.fps),
            "sha256": writer.sha256,
        }
        self.takes.append(Take(writer.path, self.resolved.seeds[variant], facts, self._clip(variant)))
        self._animate(variant, self.takes[-1])

    def _clip(self, variant: int) -> npt.NDArray[np.uint8] | None:
        import numpy as np

        chunks = self._kept.pop(variant, None)
        return np.concatenate(chunks) if chunks else None

    def _animate(self, variant: int, take: Take) -> None:
        from glimt.video.animation import save_animation

        for kind, paths in (("webp", self.outputs.webps), ("gif", self.outputs.gifs)):
            if paths and take.clip is not None:
                save_animation(paths[variant], take.clip, self.resolved.fps, publish=self._together.publish)
                take.others[kind] = str(paths[variant])

    def _save_sheet(self) -> None:
        """The contact sheet of all videos, if one is asked for: a row each, or up to three rows of a single one."""
        from glimt.video import sheet

        clips = [take.clip for take in self.takes if take.clip is not None]
        if self.outputs.sheet is None or not clips:
            return
        labels = [f"seed {take.seed}: {self.resolved.prompt}" for take in self.takes]
        rows = 1 if len(clips) > 1 else max(1, min(3, len(clips[0]) // sheet.COLUMNS))  # full ones
        picture = sheet.contact_sheet(clips, rows_per_clip=rows, labels=labels)
        sheet.save_sheet(self.outputs.sheet, picture, publish=self._together.publish)

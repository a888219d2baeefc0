"""A running request, followed: events become progress, previews and finished files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from glimt.cli import interruption
from glimt.cli.progress import Progress
from glimt.pipeline.events import FrameChunk, StageEvent, StepState
from glimt.video import files, sheet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glimt.engine import Engine
    from glimt.plan import GenerationPlan
    from glimt.report import RunReport
    from glimt.request import ResolvedRequest

_SHOWN = {"text": "", "image": "", "preview": "", "denoise": "steps", "decode": "frames"}


def follow(
    engine: Engine,
    asked: ResolvedRequest,
    show: Progress,
    on_frames: Callable[[int, npt.NDArray[np.uint8]], None],
    on_step: Callable[[StepState], None] | None = None,
    on_done: Callable[[int, Mapping[str, str]], None] | None = None,
) -> RunReport | None:
    """Run what was ``asked`` to its end, hand its frames on as they come, and return the report of the run.

    ``on_done``: called after the last frame of each variant, with the implementations that ran.

    Leaving by an exception (Ctrl-C, a full disk) closes the stream, which stops within a step and frees its memory.
    """
    several = asked.num_videos_per_prompt > 1
    report = None
    with contextlib.closing(engine.stream(asked)) as events:
        for event in events:
            interruption.check()
            if isinstance(event, StepState):
                show.update(event.step, event.num_steps, event.eta_s)
                if on_step is not None:
                    on_step(event)
            elif isinstance(event, FrameChunk):
                on_frames(event.variant, event.frames)
                show.update(event.index + len(event.frames), asked.num_frames)
            elif isinstance(event, StageEvent):
                report = event.report or report
                if on_done is not None and (event.stage, event.status) == ("decode", "end"):
                    on_done(event.variant, event.implementations)
                _show_stage(event, show, several)
    show.end()
    return report


def warn(plan: GenerationPlan, show: Progress) -> None:
    """Say what of the request has no effect or is cut, and which implementations are passed over."""
    for note in plan.notes:
        show.say(f"note: {note}")
    for fallback in plan.fallbacks:
        show.say(f"fallback: {fallback}")


def _show_stage(event: StageEvent, show: Progress, several: bool) -> None:
    if event.stage not in _SHOWN:
        return
    if event.status == "begin":
        number = f" {event.variant + 1}" if several and event.stage in ("denoise", "decode") else ""
        show.begin(event.stage + number, _SHOWN[event.stage])
    else:
        show.end()


_SEEN_PX = 96  # the least height of a picture of a preview, as far as whole enlargements bring it there


class Previews:
    """Writes each preview that the request asked for as a strip of its moments, ``preview-seed7-step003.png``.

    They are there at once, to be looked at, and gone again if the block is left by an exception.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...]) -> None:
        self.folder, self.seeds = folder, seeds
        self.paths: list[Path] = []
        self._made_folder = False

    def __enter__(self) -> Previews:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            return
        for path in self.paths:
            path.unlink(missing_ok=True)
        if self._made_folder:
            with contextlib.suppress(OSError):  # someone has put something there
                self.folder.rmdir()

    def __call__(self, step: StepState) -> None:
        clip: Any = step.preview()
        if clip is None:
            return
        self._make_folder()
        path = self.folder / f"preview-seed{self.seeds[step.variant]}-step{step.step:03d}.png"
        self.paths.append(path)
        enlarged = max(1, _SEEN_PX // clip.shape[1])
        sheet.save_sheet(path, sheet.contact_sheet(clip, scale=enlarged))

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        try:
            self._made_folder = True
            self.folder.mkdir()
        except OSError as error:
            raise files.as_output_error(self.folder, error) from error

"""Contact sheets: the moments of one or several clips side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from glimt.errors import OutputError
from glimt.video import files

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png",)
COLUMNS = 8
Clip = npt.NDArray[np.uint8]
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def moments(num_frames: int, count: int) -> list[int]:
    """``count`` frame numbers from the first to the last, evenly spread (fewer if there are fewer frames)."""
    count = min(count, num_frames)
    if count <= 1:
        return [0] * count
    return [round(i * (num_frames - 1) / (count - 1)) for i in range(count)]


def contact_sheet(
    clips: Clip | Sequence[Clip],
    *,
    columns: int = COLUMNS,
    rows_per_clip: int = 1,
    labels: Sequence[str] | None = None,
    scale: int = 1,
    gap_px: int = 4,
) -> Image:
    """One picture of ``clips``: each gives ``rows_per_clip`` rows of ``columns`` moments, read like text.

    Args:
        clips: one clip ``[F, H, W, 3]`` uint8, or several of one size.
        columns: pictures in a row; a clip with fewer frames shows all it has.
        rows_per_clip: rows for each clip.
        labels: one line of text above each clip.
        scale: whole-number enlargement, each pixel a square.
        gap_px: white space between pictures.
    Raises:
        OutputError: no clips, clips of several sizes, or not as many labels as clips.
    """
    from PIL import Image

    clips = [clips] if isinstance(clips, np.ndarray) else list(clips)
    _check(clips, columns, rows_per_clip, labels, scale)
    height, width = (scale * size for size in clips[0].shape[1:3])
    per_clip = [moments(len(clip), columns * rows_per_clip) for clip in clips]
    shown_columns = min(columns, max(map(len, per_clip)))
    sheet_width = gap_px + shown_columns * (width + gap_px)
    nearest = Image.Resampling.NEAREST
    font, line_px = _font(height) if labels is not None else (None, 0)
    sheet_height = gap_px + sum(line_px + -(-len(times) // columns) * (height + gap_px) for times in per_clip)
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    top = gap_px
    for number, (clip, times) in enumerate(zip(clips, per_clip, strict=True)):
        if labels is not None:
            _write(sheet, labels[number], (gap_px, top), sheet_width - 2 * gap_px, font)
            top += line_px
        for place, time in enumerate(times):
            picture = Image.fromarray(np.ascontiguousarray(clip[time])).resize((width, height), nearest)
            row, column = divmod(place, columns)
            sheet.paste(picture, (gap_px + column * (width + gap_px), top + row * (height + gap_px)))
        top += -(-len(times) // columns) * (height + gap_px)
    return sheet


def _check(clips: list[Clip], columns: int, rows: int, labels: Sequence[str] | None, scale: int) -> None:
    problems = []
    if not clips:
        problems.append("there are no clips")
    for number, clip in enumerate(clips):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3:] != (3,) or 0 in clip.shape:
            problems.append(f"clip {number} is {clip.dtype} {list(clip.shape)}, not uint8 [F, H, W, 3]")
    if len({clip.shape[1:] for clip in clips}) > 1:
        problems.append("the clips have several sizes: " + ", ".join(str(list(clip.shape)) for clip in clips))
    if labels is not None and len(labels) != len(clips):
        problems.append(f"there are {len(labels)} labels for {len(clips)} clips")
    if min(columns, rows, scale) < 1:
        problems.append(f"columns {columns}, rows_per_clip {rows} and scale {scale} must all be at least 1")
    if problems:
        raise OutputError("a contact sheet cannot be made: " + "; ".join(problems))


def _font(picture_height: int) -> tuple[object, int]:
    from PIL import ImageFont

    size = max(11, min(28, picture_height // 7))
    return ImageFont.load_default(size), size + 6


def _write(sheet: Image, text: str, place: tuple[int, int], width: int, font: object) -> None:
    """One line of ``text``, cut with an ellipsis where it would not fit."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(sheet)
    line = " ".join(text.split())
    shown = line
    while shown and draw.textlength(shown, font=font) > width:  # type: ignore[arg-type]
        line = line[:-1]
        shown = line.rstrip() + "..."
        if not line:
            return
    draw.text(place, shown, fill=_INK, font=font)  # type: ignore[arg-type]


def save_sheet(path: files.StrPath, sheet: Image, *, publish: files.Publish = files.publish) -> None:
    """Write ``sheet`` as PNG, whole or not at all."""
    target = files.resolve_target(path, SUFFIXES)
    with files.temporary_beside(target) as temporary:
        try:
            sheet.save(temporary, format="PNG", optimize=True)
        except OSError as error:
            raise files.as_output_error(path, error) from error
        publish(temporary, target)

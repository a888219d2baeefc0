"""How a thing moves in the world: its track without the camera's pan and zoom, put to a few measures and one word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glimt_world.judge.background import Array, Camera
from glimt_world.judge.things import Track
from glimt_world.render import EYE
from glimt_world.scene import FOCAL

PROFILE = 16


def motion_of(track: Track, shape: str, frames: Array, camera: Camera) -> tuple[str, dict[str, float]]:
    """The motion's word and the measures behind it.

    ``across``: world units to the right over the clip; ``size``: log change of height in the picture; ``base``: log
    change of the base's distance below the horizon; ``bounce``: swing of the base in world units; ``spin``: change of
    the surface's pattern relative to its brightness; ``outline``: deviation of the log width around its smooth course.
    """
    height, width = frames.shape[1:3]
    at = np.asarray(track.frames)
    boxes = np.array([(b.left, b.top, b.right, b.bottom) for b in track.blobs], np.float32)
    time = (at / max(len(frames) - 1, 1)).astype(np.float32)
    zoom, horizon = camera.zoom[at], camera.horizon[at]
    cut_side = (boxes[:, 0] <= 0) | (boxes[:, 2] >= width)
    cut = (boxes[:, 1] <= 0) | (boxes[:, 3] >= height)
    x = (_centre(boxes, width) - width / 2 - camera.shift[at]) / zoom / width
    base = np.maximum((boxes[:, 3] - horizon) / zoom / width, 1e-3)
    tall = (boxes[:, 3] - boxes[:, 1]) / zoom / width
    whole = ~cut if (~cut).sum() >= 4 else np.ones(len(cut), bool)
    size = _change(time[whole], np.log(tall[whole]))
    down = _change(time[whole], np.log(base[whole]))
    swing = _swing(time[whole], base[whole])
    low = float(np.percentile(base, 80))  # the base on the floor, where a bouncing thing hides its depth
    depth = FOCAL * EYE / low
    along = np.median(depth) if swing > 0.07 else FOCAL * EYE / base
    across = _change(time, x * along / FOCAL)
    seen = whole & ~cut_side
    spin = _spin(track, frames, seen if seen.sum() >= 4 else whole)
    outline = _wobble(time[seen], np.log((boxes[:, 2] - boxes[:, 0])[seen] / zoom[seen]))
    bounce = swing * float(depth) / FOCAL
    found = {"across": across, "size": size, "base": down, "bounce": bounce, "spin": spin, "outline": outline}
    return _word(found, shape), found


def _word(found: dict[str, float], shape: str) -> str:
    if found["bounce"] > 0.25:
        return "bouncing"
    if abs(found["across"]) > 0.55:
        return "right" if found["across"] > 0 else "left"
    turning = found["spin"] > 0.09 and abs(found["size"]) < 0.35 and abs(found["base"]) < 0.2
    if abs(found["size"]) > 0.25 and not turning:
        if found["size"] > 0:
            return "towards" if found["base"] > 0.55 * found["size"] else "growing"
        return "away"
    # A turning cube shows less pattern than a ball's or cone's stripes, but its outline breathes.
    turns = found["spin"] + found["outline"] > 0.06 if shape == "cube" else found["spin"] > 0.046
    return "spinning" if turns else "still"


def _centre(boxes: Array, width: int) -> Array:
    """Column of the thing's middle; where a side is out of the picture it is guessed from the thing's usual width."""
    left, right = boxes[:, 0].copy(), boxes[:, 2].copy()
    cut_left, cut_right = left <= 0, right >= width
    free = ~cut_left & ~cut_right
    if free.any():
        ratio = float(np.median((right - left)[free] / (boxes[:, 3] - boxes[:, 1])[free]))
        usual = ratio * (boxes[:, 3] - boxes[:, 1])
        hidden_left, hidden_right = cut_left & ~cut_right, cut_right & ~cut_left
        np.copyto(left, np.minimum(right - usual, 0), where=hidden_left)
        np.copyto(right, np.maximum(boxes[:, 0] + usual, width), where=hidden_right)
    out: Array = 0.5 * (left + right).astype(np.float32)
    return out


def _change(time: Array, values: Array) -> float:
    """Change over the whole clip of a line through the values, outliers left out once."""
    if len(values) < 3 or np.ptp(time) <= 0:
        return 0.0
    slope, level = np.polyfit(time, values, 1)
    off = np.abs(values - slope * time - level)
    keep = off <= max(3 * float(np.median(off)), 1e-6)
    if 3 <= keep.sum() < len(values):
        slope, level = np.polyfit(time[keep], values[keep], 1)
    return float(slope)


def _swing(time: Array, base: Array) -> float:
    """How far the base goes up and down around its smooth course."""
    if len(base) < 5:
        return 0.0
    rest = base - np.polyval(np.polyfit(time, base, 2), time)
    low, high = np.percentile(rest, (10, 90))
    return float(high - low)


def _wobble(time: Array, values: Array) -> float:
    """Standard deviation around a line, after a running mean."""
    if len(values) < 8:
        return 0.0
    rest = values - np.polyval(np.polyfit(time, values, 1), time)
    window = _window(len(rest))
    return float(np.std(np.convolve(rest, np.ones(window) / window, mode="valid")))


def _spin(track: Track, frames: Array, use: npt.NDArray[np.bool_]) -> float:
    """Slow change of the brightness profile across the thing, relative to its brightness.

    Each row of the thing is stretched to one width, so that a cone's stripes stand upright; rows are averaged, which
    leaves ``PROFILE`` columns per frame. Their spread over time, less what noise adds to it, is the measure.
    """
    import cv2

    profiles = []
    for t, blob, good in zip(track.frames, track.blobs, use, strict=True):
        if not good:
            continue
        grey = frames[t, blob.top : blob.bottom, blob.left : blob.right].mean(axis=-1)
        rows = np.arange(int(0.3 * len(grey)), max(int(0.85 * len(grey)), int(0.3 * len(grey)) + 1))
        first = blob.mask[rows].argmax(axis=1)
        last = blob.mask.shape[1] - 1 - blob.mask[rows, ::-1].argmax(axis=1)
        across = first[:, None] + (last - first)[:, None] * np.linspace(0.12, 0.88, PROFILE)[None]
        down = np.broadcast_to(rows[:, None], across.shape)
        lines = cv2.remap(grey, across.astype(np.float32), down.astype(np.float32), cv2.INTER_LINEAR)
        profiles.append(lines.mean(axis=0))
    table = np.array(profiles)
    if len(table) < 6:
        return 0.0
    bright = max(float(table.mean()), 0.08)
    table -= table.mean(axis=1, keepdims=True)  # a clip that grows brighter or darker does not turn
    window, lag = _window(len(table)), max(1, round(0.1 * len(table)))
    noise = float(np.mean((table[lag:] - table[:-lag]) ** 2)) / 2
    sums = np.cumsum(np.concatenate([np.zeros_like(table[:1]), table]), axis=0)
    smooth = (sums[window:] - sums[:-window]) / window
    spread = float(np.mean(np.var(smooth, axis=0)))
    return float(np.sqrt(max(spread - noise / window, 0.0)) / bright)


def _window(count: int) -> int:
    """Frames in a running mean: about a seventh of the clip, odd."""
    return 2 * round(0.07 * count) + 1

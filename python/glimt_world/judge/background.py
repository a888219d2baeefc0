"""What stands behind the things: sky, floor and horizon, and how the camera moves over them.

All positions here are in pixels of the working picture (``WIDTH`` pixels wide), colours are RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimt_world.render import EYE, HORIZON, TILE
from glimt_world.scene import FOCAL

Array = npt.NDArray[np.float32]

# A floor in shadow keeps at least this part of its light; what is darker is a thing.
DARKEST_FLOOR = 0.36
# Beyond this distance (in RGB) from floor and sky a pixel belongs to a thing.
TOLERANCE = 0.10


@dataclass(frozen=True)
class Camera:
    """Per frame: the picture's shift (pixels, positive when the content moves right), its zoom, the horizon's row."""

    shift: Array
    zoom: Array
    horizon: Array


@dataclass(frozen=True)
class Background:
    """Colours of sky and floor. The sky's are a line per channel: ``sky[0] + sky[1] * pixels above the horizon``."""

    sky: Array
    floor: Array

    @property
    def haze(self) -> Array:
        """The sky right above the horizon."""
        out: Array = self.sky[0]
        return out


def fit_background(frames: Array) -> tuple[Background, Array]:
    """Sky line, floor colour and the horizon's row in each frame, from frames [F, H, W, 3]."""
    count, height, _, _ = frames.shape
    rows = np.median(frames[:, :, ::2], axis=2)  # [F, H, 3]; things rarely cover half a row
    floor = _commonest(frames[:, int(0.45 * height) :: 2, ::2].reshape(-1, 3))
    top = np.median(rows[:, : max(2, height // 8)].reshape(-1, 3), axis=0)
    start = np.array([_crossing(rows[t], top, floor) for t in range(count)])
    guess = float(np.median(start))
    near = rows[:, max(0, int(guess) - 5) : max(1, int(guess) - 1)].reshape(-1, 3)
    haze = np.median(near, axis=0).astype(np.float32)
    far = rows[:, min(height - 2, int(guess) + 2) : int(guess) + 7].reshape(-1, 3)
    plain = np.median(far, axis=0).astype(np.float32) if len(far) else floor
    horizon = np.array([_horizon(frames[t], guess, haze, plain) for t in range(count)], np.float32)
    horizon = _fill(horizon, guess)
    return Background(_sky_line(rows, horizon), floor), horizon


def _commonest(pixels: Array) -> Array:
    """The colour most pixels [n, 3] are near to: the fullest cell of a coarse histogram, then the middle around it."""
    bins = 10
    cells = np.minimum((pixels * bins).astype(np.int64), bins - 1) @ np.array([bins * bins, bins, 1])
    fullest = np.bincount(cells, minlength=bins**3).argmax()
    colour = np.median(pixels[cells == fullest], axis=0)
    for _ in range(3):
        near = np.linalg.norm(pixels - colour, axis=1) < 0.14
        colour = np.median(pixels[near], axis=0)
    out: Array = colour.astype(np.float32)
    return out


def _crossing(rows: Array, top: Array, floor: Array) -> float:
    """The row where colours stop being nearer to the sky's than to the floor's."""
    nearer = np.linalg.norm(rows - floor, axis=1) < np.linalg.norm(rows - top, axis=1)
    # The split with the fewest rows on the wrong side.
    wrong = np.concatenate([[0], np.cumsum(nearer)]) + np.concatenate([np.cumsum(~nearer[::-1])[::-1], [0]])
    return float(np.argmin(wrong))


def _horizon(frame: Array, guess: float, haze: Array, floor: Array) -> float:
    """The horizon's row to a part of a pixel: the median over the columns that show only sky above floor there."""
    reach = 9
    low, high = max(0, round(guess) - reach), min(len(frame), round(guess) + reach)
    axis = floor - haze
    strip = frame[low:high] - haze
    along = strip @ axis / max(float(axis @ axis), 1e-4)
    off = np.linalg.norm(strip - np.clip(along, 0, 1)[..., None] * axis, axis=-1)
    clean = np.mean(off, axis=0) < 0.06
    if clean.sum() < 4:
        return float("nan")
    rows: Array = high - np.clip(along, 0, 1).sum(axis=0)
    return float(np.median(rows[clean]))


def _fill(values: Array, fallback: float) -> Array:
    """Values that could not be measured, from their neighbours in time."""
    known = np.isfinite(values)
    if not known.any():
        return np.full_like(values, fallback)
    at = np.arange(len(values))
    return np.interp(at, at[known], values[known]).astype(np.float32)


def _sky_line(rows: Array, horizon: Array) -> Array:
    last = max(4, int(0.8 * float(np.min(horizon))))
    colours = np.median(rows[:, :last], axis=0)
    above = float(np.median(horizon)) - (np.arange(last) + 0.5)
    design = np.stack([np.ones(last), above], axis=1)
    for _ in range(2):  # once more without the rows a thing disturbed
        line, *_ = np.linalg.lstsq(design, colours, rcond=None)
        off = np.linalg.norm(colours - design @ line, axis=1)
        keep = off <= max(float(np.median(off)) * 2.5, 0.01)
        design, colours = design[keep], colours[keep]
    out: Array = line.astype(np.float32)
    return out


def zoom_of(horizon: Array, height: int, width: int) -> Array:
    """Zoom in each frame from how far the horizon stands above the picture's middle (1 in the middle of the clip)."""
    distance = np.maximum(height / 2 - horizon, 1.0)
    at = np.linspace(-1, 1, len(distance))
    if len(distance) < 3:
        return np.ones_like(distance)
    # The horizon's own height is the renderer's where the clip agrees, else whatever the clip shows.
    usual = -HORIZON * width
    middle = float(np.median(distance)) if abs(np.median(distance) / usual - 1) > 0.3 else usual
    slope, level = np.polyfit(at, np.log(distance / middle), 1)
    smooth = slope * at + level
    out: Array = np.exp(smooth).astype(np.float32)
    return out


def floor_light(frames: Array, background: Background) -> Array:
    """How bright each pixel is as a piece of floor: its projection on the floor's colour, [F, H, W]."""
    colour = background.floor
    out: Array = frames @ (colour / max(float(colour @ colour), 1e-4))
    return out


def strangeness(frames: Array, light: Array, background: Background, horizon: Array, bright: float) -> Array:
    """Distance in RGB of each pixel from sky and floor, [F, H, W]; floor light may lie in [DARKEST_FLOOR, bright]."""
    height = frames.shape[1]
    above = horizon[:, None] - (np.arange(height, dtype=np.float32) + 0.5)  # [F, H]
    sky = background.sky[0] + background.sky[1] * np.maximum(above, 0)[..., None]
    from_sky = _length(frames - sky[:, :, None].astype(np.float32))
    allowed = np.clip(light, np.float32(DARKEST_FLOOR), np.float32(bright))
    from_floor = _length(frames - allowed[..., None] * background.floor)
    out: Array = np.where(above[..., None] > 0, from_sky, from_floor)
    # A pixel on the horizon may be any mixture of the two.
    axis = background.floor - background.haze
    edge = np.abs(above) < 1.8
    mixed = frames[edge] - background.haze
    along = np.clip(mixed @ axis / max(float(axis @ axis), 1e-4), 0, 1)
    between = np.linalg.norm(mixed - along[..., None] * axis, axis=-1)
    out[edge] = np.minimum(np.minimum(between, from_sky[edge]), from_floor[edge])
    return out


def _length(vectors: Array) -> Array:
    out: Array = np.sqrt(np.einsum("...c,...c->...", vectors, vectors))
    return out


def pan_of(light: Array, things: npt.NDArray[np.bool_], horizon: Array, zoom: Array, lag: int) -> Array:
    """The picture's shift in each frame in pixels, 0 in the middle, from the floor between frames ``lag`` apart."""
    import cv2

    count, height, width = light.shape
    if count <= lag:
        return np.zeros(count, np.float32)
    first = int(min(height - 8, np.median(horizon) + 0.08 * width))
    pattern = np.clip(light[:, first:], 0.8, 1.2) - 1
    # Shadows move with their things, so they and their soft edges say nothing about the camera.
    shade = (light[:, first:] < 0.86).astype(np.uint8)
    body = things[:, first:].astype(np.uint8)
    weight = np.empty(pattern.shape, np.float32)
    for t in range(count):
        shade[t] = cv2.morphologyEx(shade[t], cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        hidden = cv2.dilate(shade[t], np.ones((9, 9), np.uint8)) | cv2.dilate(body[t], np.ones((7, 7), np.uint8))
        weight[t] = hidden == 0
    steps = np.zeros(count - lag, np.float32)
    for t in range(count - lag):
        a = _zoomed(pattern[t], first, height, float(zoom[t + lag] / zoom[t]))
        steps[t] = _shift(a, weight[t], pattern[t + lag], weight[t + lag]) / lag
    speed = np.interp(np.arange(count - 1), np.arange(count - lag) + (lag - 1) / 2, steps)
    shift = np.concatenate([[0.0], np.cumsum(speed)])
    out: Array = (shift - shift[count // 2]).astype(np.float32)
    return out


def _zoomed(part: Array, first: int, height: int, ratio: float) -> Array:
    """Rows ``first`` and below of a picture, zoomed about the whole picture's middle."""
    import cv2

    if abs(ratio - 1) < 1e-3:
        return part
    width = part.shape[1]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2 - first
    matrix = np.array([[ratio, 0, middle_x * (1 - ratio)], [0, ratio, middle_y * (1 - ratio)]], np.float32)
    out: Array = cv2.warpAffine(part, matrix, (width, part.shape[0]), flags=cv2.INTER_LINEAR)
    return out


def _shift(a: Array, wa: Array, b: Array, wb: Array, reach: int = 9) -> float:
    """How many columns ``a`` must move right to lie on ``b``: least weighted difference, to a part of a pixel."""
    width = a.shape[1]
    costs = np.empty(2 * reach + 1)
    for i, d in enumerate(range(-reach, reach + 1)):
        left, right = slice(max(0, -d), width - max(0, d)), slice(max(0, d), width - max(0, -d))
        w = wa[:, left] * wb[:, right]
        diff = a[:, left] - b[:, right]
        costs[i] = float((w * np.minimum(diff * diff, 0.01)).sum()) / max(float(w.sum()), 1.0)
    best = int(np.argmin(costs))
    if 0 < best < 2 * reach:
        low, mid, high = costs[best - 1 : best + 2]
        return float(best - reach + 0.5 * (low - high) / max(low - 2 * mid + high, 1e-12))
    return float(best - reach)


def checker(camera: Camera, height: int, width: int) -> Array:
    """The renderer's floor pattern under this camera, -1 to 1, [F, H, W]; 0 above the horizon and far away."""
    columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / width
    rows = (np.arange(height, dtype=np.float32) + 0.5)[None] - camera.horizon[:, None]
    below = np.maximum(rows / width / camera.zoom[:, None], 1e-3)[..., None]
    z = FOCAL * EYE / below
    u = ((columns - (camera.shift / width)[:, None]) / camera.zoom[:, None])[:, None, :]
    x = u * z / FOCAL
    pixel = 1 / (width * camera.zoom[:, None, None])
    fade = np.clip(2.0 - 5 * pixel * z * z / (FOCAL * EYE) / TILE, 0, 1)
    out: Array = (fade * np.tanh(3 * np.sin(np.pi * x / TILE) * np.sin(np.pi * z / TILE))).astype(np.float32)
    return out


def camera_word(camera: Camera, width: int) -> str:
    """still, pan left, pan right, zoom in or zoom out, from how shift and zoom change over the whole clip."""
    count = len(camera.shift)
    if count < 3:
        return "still"
    at = np.linspace(0, 1, count)
    pan = float(np.polyfit(at, camera.shift / width, 1)[0])
    zoom = float(np.polyfit(at, np.log(camera.zoom), 1)[0])
    # The world pans by 0.24 to 0.36 widths and zooms by a log factor of 0.36 to 0.54: half of the least is the bar.
    if max(abs(pan) / 0.12, abs(zoom) / 0.18) < 1:
        return "still"
    if abs(pan) / 0.12 > abs(zoom) / 0.18:
        return "pan left" if pan > 0 else "pan right"
    return "zoom in" if zoom > 0 else "zoom out"

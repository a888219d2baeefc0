"""A clip in, what it shows out: ``read_clip``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from glimt_world.judge.background import (
    TOLERANCE,
    Array,
    Background,
    Camera,
    camera_word,
    checker,
    fit_background,
    floor_light,
    pan_of,
    strangeness,
    zoom_of,
)
from glimt_world.judge.motion import motion_of
from glimt_world.judge.things import COLOURS, Mask, Track, find_tracks, shape_of
from glimt_world.scene import FLOOR_COLOURS, SKY_COLOURS, Rgb

WIDTH = 96  # the working picture's width in pixels
UNEVEN = 0.12  # change of a floor's light that the checker cannot make, even where the clip's is not the renderer's


@dataclass(frozen=True)
class Found:
    """One thing as the judge sees it. ``track``: its box (left, top, right, bottom) per frame in parts of the picture's
    width, NaN where unseen, [F, 4]; ``measures``: the numbers behind the words."""

    colour: str
    shape: str
    motion: str
    track: Array
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a clip shows."""

    things: tuple[Found, ...]
    floor: str
    sky: str
    camera: str
    horizon: Array
    shift: Array
    zoom: Array


def read_clip(frames: npt.NDArray[np.uint8]) -> Reading:
    """Read a clip of the little world back. ``frames``: uint8 [F, H, W, 3] RGB, F >= 1; smaller or larger pictures are
    brought to ``WIDTH`` columns first."""
    _opencv()
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"a clip is uint8 [F, H, W, 3]; got {frames.dtype} {list(frames.shape)}")
    clip = _prepared(frames)
    _, height, width, _ = clip.shape
    background, horizon = fit_background(clip)
    zoom = zoom_of(horizon, height, width)
    light = floor_light(clip, background)
    strange = strangeness(clip, light, background, horizon, 1.18)
    shift = pan_of(light, strange > TOLERANCE, horizon, zoom, lag=min(4, max(1, len(clip) // 4)))
    camera = Camera(shift, zoom, horizon)
    strange, uneven = _with_pattern(clip, light, strange, background, camera)
    tracks = find_tracks(clip, strange, uneven if np.ptp(background.floor) < 0.10 else None)
    things = tuple(_found(track, clip, camera) for track in tracks)
    floor, sky = _nearest(background.floor, FLOOR_COLOURS), _nearest(_mean_sky(background, clip), _SKIES)
    return Reading(things, floor, sky, camera_word(camera, width), horizon / width, shift / width, zoom)


def _opencv() -> Any:
    """OpenCV, on one thread: clips are small, and whoever judges many runs several processes."""
    try:
        import cv2
    except ImportError as error:
        command = "pip install -e '.[judge]' in the folder of glimt"
        raise ImportError(f"the judge needs OpenCV; make test installs it, and so does {command}") from error
    cv2.setNumThreads(1)
    return cv2


def _prepared(frames: npt.NDArray[np.uint8]) -> Array:
    """The working clip: float in [0, 1], ``WIDTH`` columns, a little noise smoothed away in space and time."""
    import cv2

    height = max(8, round(frames.shape[1] * WIDTH / frames.shape[2]))
    out = np.empty((len(frames), height, WIDTH, 3), np.float32)
    for t, frame in enumerate(frames):
        if frame.shape[:2] != (height, WIDTH):
            frame = cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA)
        cv2.GaussianBlur(frame.astype(np.float32) / 255, (3, 3), 0.6, dst=out[t])
    if len(out) > 2:
        out[1:-1] = 0.5 * out[1:-1] + 0.25 * (out[:-2] + out[2:])
    return out


def _with_pattern(
    clip: Array, light: Array, strange: Array, background: Background, camera: Camera
) -> tuple[Array, Mask]:
    """Strangeness again, and where the floor is unevenly lit: both with the floor's checker taken out of the light, as
    far as the clip shows it where the renderer does."""
    pattern = checker(camera, *clip.shape[1:3])
    free = (strange < TOLERANCE) & (np.abs(pattern) > 0.3) & (light > 0.7)
    rest = light - 1
    tolerance = UNEVEN
    if free.sum() >= 100:
        amount = min(max(float(np.median(rest[free] / pattern[free])), 0.0), 0.14)
        off = float(np.median(np.abs(rest[free] - amount * pattern[free])))
        flat = 1 + amount * pattern
        light = light / flat
        strange = strangeness(clip / flat[..., None], light, background, camera.horizon, min(1.03 + 3 * off, 1.18))
        tolerance = min(max(6 * off, 0.05), UNEVEN)
    ground = np.arange(clip.shape[1])[None] > camera.horizon[:, None] + 1.5
    return strange, (np.abs(light - 1) > tolerance) & ground[..., None]


def _found(track: Track, clip: Array, camera: Camera) -> Found:
    _, height, width, _ = clip.shape
    shape, outline = shape_of(track, height, width)
    motion, measures = motion_of(track, shape, clip, camera)
    boxes = np.full((len(clip), 4), np.nan, np.float32)
    for t, blob in zip(track.frames, track.blobs, strict=True):
        boxes[t] = np.array([blob.left, blob.top, blob.right, blob.bottom], np.float32) / width
    return Found(COLOURS[track.colour], shape, motion, boxes, {**outline, **measures})


def _halfway(name: str) -> Rgb:
    """The sky's colour halfway up, haze included, as the renderer mixes it."""
    share = 0.5 * 0.35 * (0.4 if name == "dark" else 1.0)
    r, g, b = (c + share * (1 - c) for c in SKY_COLOURS[name])
    return r, g, b


_SKIES = {name: _halfway(name) for name in SKY_COLOURS}


def _mean_sky(background: Background, clip: Array) -> Array:
    out: Array = background.sky[0] + background.sky[1] * 0.25 * clip.shape[2]
    return out


def _nearest(colour: Array, names: Mapping[str, Rgb]) -> str:
    """The named colour nearest in CIE L*a*b*; lightness counts half, as a model gets hue right before light."""
    import cv2

    words = list(names)
    table = np.array([colour, *(names[word] for word in words)], np.float32)[None]
    lab = cv2.cvtColor(np.clip(table, 0, 1), cv2.COLOR_RGB2LAB)[0]
    off = (lab[1:] - lab[0]) * np.array([0.5, 1, 1], np.float32)
    return words[int(np.argmin(np.linalg.norm(off, axis=1)))]

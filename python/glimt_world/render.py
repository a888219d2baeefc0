"""The little world's renderer: a scene in, an antialiased clip out, in numpy.

A pinhole camera with a shifted lens stands ``EYE`` above the floor, so that upright things stay upright:
``u = f x / z``, ``v = horizon + f (EYE - y) / z`` in units of the picture's width. Every surface is an analytic patch
(disc, convex polygon, ellipse with tangents) with coverage from its signed distance in pixels, shaded by one light;
shadows are soft spots on the floor below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimt_world.scene import (
    FLOOR_COLOURS,
    FOCAL,
    OBJECT_COLOURS,
    SKY_COLOURS,
    Pose,
    Scene,
    Thing,
    camera_at,
    pose,
)

Array = npt.NDArray[np.float32]

EYE = 1.15
HORIZON = -0.12
CONE_HEIGHT = 2.4
TILE = 0.55


@dataclass(frozen=True)
class View:
    """Coordinates of every pixel before the camera's pan and zoom, and the width of a pixel there."""

    u: Array
    v: Array
    pixel: float


def view_at(scene: Scene, s: float, height: int, width: int) -> View:
    shift, zoom = camera_at(scene, s)
    u = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    v = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / width
    u, v = np.meshgrid((u - shift) / zoom, v / zoom)
    return View(u.astype(np.float32), v.astype(np.float32), 1.0 / (width * zoom))


def _background(scene: Scene, view: View, poses: list[Pose]) -> Array:
    below = view.v - HORIZON
    ground = np.maximum(below, 1e-3)
    z = FOCAL * EYE / ground
    x = view.u * z / FOCAL
    floor = np.asarray(FLOOR_COLOURS[scene.floor], np.float32)
    # A soft checker, fading where a tile gets close to a pixel, tells the camera's motion from a thing's.
    fade = np.clip(2.0 - 5 * view.pixel * z * z / (FOCAL * EYE) / TILE, 0, 1)
    checker = np.sin(math.pi * x / TILE) * np.sin(math.pi * z / TILE)
    light = 1.0 + 0.10 * fade * np.tanh(3 * checker)
    for p in poses:
        light *= 1.0 - _shadow(scene, p, x, z)
    sky = np.asarray(SKY_COLOURS[scene.sky], np.float32)
    height = np.clip(-below / 0.5, 0, 1)[..., None]
    haze = sky + (1 - height) * 0.35 * (np.float32(1.0) - sky) * (0.4 if scene.sky == "dark" else 1.0)
    mix = np.clip(below / view.pixel + 0.5, 0, 1)[..., None]
    out: Array = (mix * (floor * light[..., None]) + (1 - mix) * haze).astype(np.float32)
    return out


def _shadow(scene: Scene, p: Pose, x: Array, z: Array) -> Array:
    """How much light the thing takes from each point of the floor: less and softer the higher it floats."""
    reach = p.size * (1.05 + 0.35 * p.y)
    dx = x - (p.x - scene.light * (0.35 * p.size + 0.5 * p.y))
    dz = z - (p.z + 0.15 * p.size)
    distance = np.sqrt(dx * dx + dz * dz) / reach
    softness = 0.35 + 0.5 * p.y
    out: Array = (0.55 / (1 + 1.2 * p.y)) * np.clip((1 + softness - distance) / (2 * softness), 0, 1) ** 2
    return out


def _lambert(scene: Scene, nx: Array, ny: Array, nz: Array) -> Array:
    """0.6 ambient + 0.4 diffuse; normals in world axes, nz positive towards the viewer."""
    lx, ly, lz = 0.55 * scene.light, 0.65, 0.55
    norm = math.sqrt(lx * lx + ly * ly + lz * lz)
    diffuse = np.clip((nx * lx + ny * ly + nz * lz) / norm, 0, 1)
    out: Array = 0.6 + 0.4 * diffuse
    return out


def _wedges(angle: Array, turn: float) -> Array:
    """Dark longitudinal stripes that make turning visible."""
    out: Array = 1.0 - 0.30 * np.clip(0.5 + 2.5 * np.sin(2 * (angle + turn)), 0, 1)
    return out


def _ball(scene: Scene, p: Pose, view: View) -> tuple[Array, Array]:
    """(coverage, shade) of a ball resting at height p.y."""
    k = FOCAL / p.z
    dx = (view.u - k * p.x) / (k * p.size)
    dy = (HORIZON + k * (EYE - p.y - p.size) - view.v) / (k * p.size)
    radius = np.sqrt(dx * dx + dy * dy)
    coverage = np.clip(0.5 - (radius - 1) * (k * p.size) / view.pixel, 0, 1)
    nz = np.sqrt(np.clip(1 - radius * radius, 0, 1))
    shade = _lambert(scene, dx, dy, nz) * _wedges(np.arctan2(dx, nz + 1e-6), p.turn)
    return coverage, shade


def _polygon(view: View, corners: npt.NDArray[np.float64]) -> Array:
    """Coverage of a convex polygon with corners [n, 2] in clockwise or anticlockwise order."""
    # The box around the corners keeps sharp corners from growing spikes where two edge lines run side by side.
    (u_min, v_min), (u_max, v_max) = corners.min(axis=0), corners.max(axis=0)
    distance = np.maximum(np.maximum(u_min - view.u, view.u - u_max), np.maximum(v_min - view.v, view.v - v_max))
    distance = distance.astype(np.float32)
    following = np.roll(corners, -1, axis=0)
    area = np.sum(corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0])
    sign = 1.0 if area > 0 else -1.0
    for (u0, v0), (u1, v1) in zip(corners, following, strict=True):
        length = math.hypot(u1 - u0, v1 - v0) + 1e-9
        edge = ((view.u - u0) * (v1 - v0) - (view.v - v0) * (u1 - u0)) * (sign / length)
        np.maximum(distance, edge, out=distance)
    out: Array = np.clip(0.5 - distance / view.pixel, 0, 1)
    return out


def _cube(scene: Scene, p: Pose, view: View) -> tuple[Array, Array]:
    """(coverage, shade) of an upright cube: its lit top and the sides that face the viewer."""
    side = 0.85 * p.size
    angles = p.turn + math.pi / 4 + math.pi / 2 * np.arange(4)
    xs, zs = p.x + side * math.sqrt(2) * np.cos(angles), p.z + side * math.sqrt(2) * np.sin(angles)

    def project(index: int, y: float) -> tuple[float, float]:
        k = FOCAL / zs[index]
        return k * xs[index], HORIZON + k * (EYE - y)

    low, high = p.y, p.y + 2 * side
    coverage = np.zeros(view.u.shape, np.float32)
    light = np.zeros(view.u.shape, np.float32)

    def add(face: Array, shade: float) -> None:
        nonlocal coverage, light
        coverage = coverage + face
        light = light + face * np.float32(shade)

    if high < EYE:
        add(_polygon(view, np.array([project(i, high) for i in range(4)])), 1.08 * float(_flat(scene, 0, 1, 0)))
    for i in range(4):
        j = (i + 1) % 4
        nx, nz = math.cos(angles[i] + math.pi / 4), math.sin(angles[i] + math.pi / 4)
        if nx * (xs[i] + xs[j]) / 2 + nz * (zs[i] + zs[j]) / 2 >= 0:
            continue  # faces away from the eye
        corners = np.array([project(i, low), project(j, low), project(j, high), project(i, high)])
        add(_polygon(view, corners), float(_flat(scene, nx, 0, -nz)) * (0.82 if i % 2 else 1.0))
    shade: Array = (light / np.maximum(coverage, 1e-6)).astype(np.float32)
    capped: Array = np.minimum(coverage, np.float32(1))
    return capped, shade


def _flat(scene: Scene, nx: float, ny: float, nz: float) -> Array:
    return _lambert(scene, np.float32(nx), np.float32(ny), np.float32(nz))  # type: ignore[arg-type]


def _cone(scene: Scene, p: Pose, view: View) -> tuple[Array, Array]:
    """(coverage, shade) of an upright cone: the ellipse of its base and the tangents from its tip."""
    k = FOCAL / p.z
    a, b = k * p.size, k * p.size * max(EYE - p.y, 0.12) / p.z
    x = view.u - k * p.x
    y = HORIZON + k * (EYE - p.y) - view.v
    height = k * CONE_HEIGHT * p.size
    inside = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    gradient = np.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2) + 1e-6
    base = np.clip(0.5 - inside * (inside - 1) / gradient / view.pixel, 0, 1)
    # Tangent points of the base ellipse seen from the tip, found on the circle it becomes when y is divided by b.
    sine = b / height
    tx, ty = a * math.sqrt(max(1 - sine * sine, 0.0)), b * sine
    corners = np.array([(0.0, height), (tx, ty), (-tx, ty)])
    body = _polygon(View(x, y, view.pixel), corners)
    coverage = np.maximum(base, body)
    half = a * np.clip(1 - y / height, 0.02, 1)
    across = np.clip(x / half, -1, 1)
    facing = np.sqrt(1 - across * across)
    slope = 1 / math.hypot(1, CONE_HEIGHT)
    shade = _lambert(scene, across * (1 - slope), np.full_like(across, slope), facing * (1 - slope))
    return coverage, shade * _wedges(np.arcsin(across).astype(np.float32), p.turn)


_PAINTERS = {"ball": _ball, "cube": _cube, "cone": _cone}


def _window(p: Pose, view: View) -> tuple[slice, slice]:
    """Rows and columns that the thing can touch."""
    k = FOCAL / p.z
    left, right = k * p.x - 1.6 * k * p.size, k * p.x + 1.6 * k * p.size
    bottom = HORIZON + k * (EYE - p.y) + 1.2 * k * p.size
    top = HORIZON + k * (EYE - p.y) - 3.0 * k * p.size
    rows = np.flatnonzero((view.v[:, 0] > top) & (view.v[:, 0] < bottom))
    cols = np.flatnonzero((view.u[0] > left) & (view.u[0] < right))
    if not len(rows) or not len(cols):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


def _paint(image: Array, scene: Scene, thing: Thing, p: Pose, view: View) -> None:
    rows, cols = _window(p, view)
    part = View(view.u[rows, cols], view.v[rows, cols], view.pixel)
    if not part.u.size:
        return
    coverage, shade = _PAINTERS[thing.shape](scene, p, part)
    colour = np.asarray(OBJECT_COLOURS[thing.colour], np.float32) * shade[..., None]
    alpha = coverage[..., None]
    image[rows, cols] = alpha * colour + (1 - alpha) * image[rows, cols]


def render_frame(scene: Scene, s: float, height: int, width: int) -> Array:
    """The picture at time ``s`` in [0, 1]: float32 [height, width, 3] in [0, 1]."""
    view = view_at(scene, s, height, width)
    poses = [pose(thing, s) for thing in scene.things]
    image = _background(scene, view, poses)
    for thing, p in sorted(zip(scene.things, poses, strict=True), key=lambda pair: -pair[1].z):
        _paint(image, scene, thing, p, view)
    return np.clip(image, 0, 1)


def render(
    scene: Scene, *, num_frames: int = 33, height: int = 96, width: int = 96, span: tuple[float, float] = (0.0, 1.0)
) -> npt.NDArray[np.uint8]:
    """The part ``span`` of the clip as uint8 [num_frames, height, width, 3]; a single frame shows its middle."""
    times = np.linspace(*span, num_frames) if num_frames > 1 else np.array([0.5 * (span[0] + span[1])])
    frames = [render_frame(scene, float(s), height, width) for s in times]
    return np.round(np.stack(frames) * 255).astype(np.uint8)

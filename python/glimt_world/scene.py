"""What can stand and happen in the little world: values only, and how random scenes are drawn.

World axes: X to the right, Y up, Z into the picture, floor at Y = 0; one unit is about three ball radii.
Camera shift and zoom act on the finished picture: ``u = centre + zoom * (u0 - centre) + shift``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np

Rgb = tuple[float, float, float]

FOCAL = 1.05

SHAPES = ("ball", "cube", "cone")

OBJECT_COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (0.85, 0.10, 0.10),
        "orange": (1.00, 0.50, 0.02),
        "yellow": (0.98, 0.90, 0.10),
        "green": (0.08, 0.65, 0.15),
        "blue": (0.10, 0.22, 0.90),
        "purple": (0.60, 0.12, 0.78),
        "white": (0.96, 0.96, 0.96),
        "black": (0.07, 0.07, 0.07),
    }
)

# Floors and skies are paler and duller than any object, so that a colour word alone tells which of them is meant.
FLOOR_COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "grey": (0.50, 0.50, 0.50),
        "green": (0.42, 0.58, 0.38),
        "blue": (0.38, 0.48, 0.64),
        "brown": (0.56, 0.42, 0.30),
        "pink": (0.74, 0.52, 0.58),
    }
)

SKY_COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "blue": (0.50, 0.72, 0.95),
        "pink": (0.95, 0.70, 0.76),
        "grey": (0.72, 0.73, 0.74),
        "golden": (0.95, 0.83, 0.50),
        "dark": (0.13, 0.14, 0.26),
    }
)

MOTIONS = ("still", "left", "right", "towards", "away", "bouncing", "spinning", "growing")
CAMERAS = ("still", "pan left", "pan right", "zoom in", "zoom out")


@dataclass(frozen=True)
class Thing:
    """One object. ``x, z``: where its base stands halfway through the clip; ``size``: half its width then.

    ``amount`` scales its motion: units travelled, height bounced, turns made or growth, by motion; ``phase`` in turns.
    """

    shape: str
    colour: str
    motion: str
    x: float
    z: float
    size: float
    amount: float
    phase: float


@dataclass(frozen=True)
class Scene:
    """One clip's content. ``light``: where the light comes from, -1 (left) to 1 (right)."""

    things: tuple[Thing, ...]
    floor: str
    sky: str
    camera: str
    light: float
    camera_amount: float

    def attributes(self) -> dict[str, object]:
        return asdict(self)

    @property
    def held_out(self) -> bool:
        """Whether this combination of words is kept from training: one in sixteen, decided by its digest."""
        words = [f"{t.shape} {t.colour} {t.motion}" for t in self.things]
        digest = hashlib.sha256("|".join([*sorted(words), self.floor, self.sky]).encode()).digest()
        return digest[0] % 16 == 0


@dataclass(frozen=True)
class Pose:
    """Where a thing is at one moment: base at (x, y, z), half width ``size``, ``turn`` in radians."""

    x: float
    y: float
    z: float
    size: float
    turn: float


def pose(thing: Thing, s: float) -> Pose:
    """The thing at time ``s`` in [0, 1] of its clip."""
    along = (s - 0.5) * thing.amount
    x, y, z, size = thing.x, 0.0, thing.z, thing.size
    turn = 2 * math.pi * thing.phase
    if thing.motion == "left":
        x -= along
    elif thing.motion == "right":
        x += along
    elif thing.motion == "towards":
        z -= along
    elif thing.motion == "away":
        z += along
    elif thing.motion == "bouncing":
        y = thing.amount * abs(math.sin(2 * math.pi * (s + 0.5 * thing.phase)))
    elif thing.motion == "spinning":
        turn += 2 * math.pi * thing.amount * s
    elif thing.motion == "growing":
        size *= math.exp(along)
    return Pose(x, y, z, size, turn)


def camera_at(scene: Scene, s: float) -> tuple[float, float]:
    """(shift, zoom) at time ``s``: shift in picture widths, positive when the picture's content moves right."""
    along = (s - 0.5) * scene.camera_amount
    if scene.camera == "pan left":
        return 0.30 * along, 1.0
    if scene.camera == "pan right":
        return -0.30 * along, 1.0
    if scene.camera == "zoom in":
        return 0.0, math.exp(0.45 * along)
    if scene.camera == "zoom out":
        return 0.0, math.exp(-0.45 * along)
    return 0.0, 1.0


# Distance from first to last moment, by motion (see Thing.amount).
_AMOUNTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "still": (0.0, 0.0),
        "left": (1.1, 1.7),
        "right": (1.1, 1.7),
        "towards": (1.6, 2.2),
        "away": (1.6, 2.2),
        "bouncing": (0.55, 0.8),
        "spinning": (0.5, 0.8),
        "growing": (0.7, 1.0),
    }
)


def _draw_thing(rng: np.random.Generator, lane: float, forbidden: set[str]) -> Thing:
    colours = [c for c in OBJECT_COLOURS if c not in forbidden]
    motion = str(rng.choice(MOTIONS))
    low, high = _AMOUNTS[motion]
    depth = (3.3, 3.7) if motion in ("towards", "away") else (2.6, 3.6)
    return Thing(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(colours)),
        motion=motion,
        x=lane + float(rng.uniform(-0.25, 0.25)),
        z=float(rng.uniform(*depth)),
        size=float(rng.uniform(0.30, 0.40)),
        amount=float(rng.uniform(low, high)),
        phase=float(rng.uniform(0, 1)),
    )


def _extent(thing: Thing, s: float) -> tuple[float, float]:
    p = pose(thing, s)
    return (p.x - 1.2 * p.size) / p.z, (p.x + 1.2 * p.size) / p.z


def _in_sight(scene: Scene) -> bool:
    """Whether the middle of every thing is well inside the picture at the start and the end."""
    for thing in scene.things:
        for s in (0.0, 1.0):
            p, (shift, zoom) = pose(thing, s), camera_at(scene, s)
            if abs(zoom * FOCAL * p.x / p.z + shift) > 0.44:
                return False
    return True


def _apart(a: Thing, b: Thing) -> bool:
    """Whether the two never cover each other in the picture."""
    for s in (0.0, 0.25, 0.5, 0.75, 1.0):
        (a0, a1), (b0, b1) = _extent(a, s), _extent(b, s)
        if min(a1, b1) - max(a0, b0) > 0:
            return False
    return True


def draw_scene(rng: np.random.Generator, *, two: float = 0.3) -> Scene:
    """A random scene; with probability ``two`` it holds two things, of different colours and never overlapping."""
    while True:
        scene = _draw(rng, two)
        if _in_sight(scene) and (len(scene.things) == 1 or _apart(*scene.things)):
            return scene


def _draw(rng: np.random.Generator, two: float) -> Scene:
    floor, sky = str(rng.choice(list(FLOOR_COLOURS))), str(rng.choice(list(SKY_COLOURS)))
    # An object must differ from what is behind it by name, and white or black from a like sky by sight.
    like = {"grey": {"white"}, "dark": {"black"}}
    forbidden = {floor, sky} | like.get(sky, set())
    camera = str(rng.choice(CAMERAS, p=(0.6, 0.1, 0.1, 0.1, 0.1)))
    things: tuple[Thing, ...]
    if rng.random() < two:
        left = _draw_thing(rng, -0.55, forbidden)
        right = _draw_thing(rng, 0.55, forbidden | {left.colour})
        things = (left, right) if rng.random() < 0.5 else (right, left)
    else:
        things = (_draw_thing(rng, 0.0, forbidden),)
    return Scene(things, floor, sky, camera, float(rng.uniform(-1, 1)), float(rng.uniform(0.8, 1.2)))

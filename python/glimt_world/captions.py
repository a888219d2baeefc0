"""Captions of little-world scenes: short and detailed forms, synonyms, varied order, and what each one states.

A caption need not state everything (the sky, the camera); what it leaves out is ``None`` and nobody may judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from glimt_world.scene import Scene, Thing, draw_scene

Words = Mapping[str, tuple[str, ...]]

SHAPE_WORDS: Words = MappingProxyType(
    {"ball": ("ball", "ball", "sphere"), "cube": ("cube", "cube", "box"), "cone": ("cone", "cone", "pointed cone")}
)
COLOUR_WORDS: Words = MappingProxyType({"purple": ("purple", "purple", "violet"), "grey": ("grey", "gray")})
MOTION_WORDS: Words = MappingProxyType(
    {
        "still": ("stands still", "rests", "does not move", "stays where it is"),
        "left": ("moves left", "moves to the left", "slides left", "glides to the left"),
        "right": ("moves right", "moves to the right", "slides right", "glides to the right"),
        "towards": ("comes closer", "moves towards the viewer", "approaches", "comes towards us"),
        "away": ("moves away", "moves into the distance", "recedes", "goes away from us"),
        "bouncing": ("bounces up and down", "bounces", "hops up and down", "jumps up and down"),
        "spinning": ("spins", "rotates", "turns on the spot", "spins around"),
        "growing": ("grows", "gets bigger", "swells", "grows larger"),
    }
)
# A ball may roll, and then only sideways.
ROLLING: Words = MappingProxyType(
    {"left": ("rolls left", "rolls to the left"), "right": ("rolls right", "rolls to the right")}
)
CAMERA_WORDS: Words = MappingProxyType(
    {
        "still": ("the camera is still", "the camera does not move"),
        "pan left": ("the camera pans left", "the camera pans to the left"),
        "pan right": ("the camera pans right", "the camera pans to the right"),
        "zoom in": ("the camera zooms in", "the camera slowly zooms in"),
        "zoom out": ("the camera zooms out", "the camera slowly zooms out"),
    }
)
GROUND = ("floor", "floor", "ground")


@dataclass(frozen=True)
class Stated:
    """What a caption says of one thing."""

    shape: str
    colour: str
    motion: str


@dataclass(frozen=True)
class Caption:
    """A text and what it states; ``None`` where it says nothing."""

    text: str
    things: tuple[Stated, ...]
    floor: str | None
    sky: str | None
    camera: str | None


def _one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _colour(rng: np.random.Generator, colour: str) -> str:
    return _one_of(rng, COLOUR_WORDS.get(colour, (colour,)))


def _name(rng: np.random.Generator, thing: Thing, article: str) -> str:
    adjective = _colour(rng, thing.colour)
    if article == "a" and adjective[0] in "aeiou":
        article = "an"
    return f"{article} {adjective} {_one_of(rng, SHAPE_WORDS[thing.shape])}"


def _moves(rng: np.random.Generator, thing: Thing) -> str:
    rolls = ROLLING.get(thing.motion, ()) if thing.shape == "ball" else ()
    return _one_of(rng, (*MOTION_WORDS[thing.motion], *rolls, *rolls))


def _floor(rng: np.random.Generator, scene: Scene) -> str:
    preposition = _one_of(rng, ("over", "on", "across") if scene.things[0].motion in ("left", "right") else ("on",))
    return f"{preposition} a {_colour(rng, scene.floor)} {_one_of(rng, GROUND)}"


def _sky(rng: np.random.Generator, scene: Scene) -> str:
    return f"{_one_of(rng, ('under', 'below', 'beneath'))} a {_colour(rng, scene.sky)} sky"


def _short(scene: Scene, rng: np.random.Generator, sky: bool, camera: bool) -> str:
    parts = [f"{_name(rng, thing, 'a')} {_moves(rng, thing)}" for thing in scene.things]
    text = " and ".join(parts) + " " + _floor(rng, scene)
    if sky:
        text += (", " if rng.random() < 0.3 else " ") + _sky(rng, scene)
    if camera:
        text += ", " + _one_of(rng, CAMERA_WORDS[scene.camera])
    return text


def _setting_first(scene: Scene, rng: np.random.Generator, sky: bool, camera: bool) -> str:
    where = _floor(rng, scene) + (" " + _sky(rng, scene) if sky else "")
    parts = [f"{_name(rng, thing, 'a')} {_moves(rng, thing)}" for thing in scene.things]
    text = f"{where}, " + " and ".join(parts)
    return text + (". " + _one_of(rng, CAMERA_WORDS[scene.camera]) if camera else "")


def _detailed(scene: Scene, rng: np.random.Generator, sky: bool, camera: bool) -> str:
    opening = _one_of(rng, ("a short clip of", "a video of", "we see"))
    names = [_name(rng, thing, "a") for thing in scene.things]
    text = f"{opening} {' and '.join(names)} {_floor(rng, scene)}"
    text += " " + _sky(rng, scene) + "." if sky else "."
    for thing in scene.things:
        subject = "it" if len(names) == 1 and rng.random() < 0.7 else _name(rng, thing, "the")
        text += f" {subject} {_moves(rng, thing)}."
    return text + (f" {_one_of(rng, CAMERA_WORDS[scene.camera])}." if camera else "")


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of a scene's many captions. It always states the floor, mostly the sky, nearly always a moving camera."""
    sky = bool(rng.random() < 0.75)
    camera = bool(rng.random() < (0.2 if scene.camera == "still" else 0.9))
    form = (_short, _short, _setting_first, _detailed)[int(rng.integers(4))]
    text = form(scene, rng, sky, camera)
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return Caption(
        text,
        tuple(Stated(t.shape, t.colour, t.motion) for t in scene.things),
        scene.floor,
        scene.sky if sky else None,
        scene.camera if camera else None,
    )


def held_out(count: int, *, seed: int = 0) -> list[Caption]:
    """Captions of combinations that training never saw, the same for the same seed."""
    rng = np.random.default_rng(seed)
    captions: list[Caption] = []
    while len(captions) < count:
        scene = draw_scene(rng)
        if scene.held_out:
            captions.append(caption(scene, rng))
    return captions

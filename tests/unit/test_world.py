"""The little world: scenes are fair, renders show them, captions say what they state."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from glimt_world import captions
from glimt_world.render import render
from glimt_world.scene import (
    CAMERAS,
    FLOOR_COLOURS,
    MOTIONS,
    OBJECT_COLOURS,
    SHAPES,
    SKY_COLOURS,
    Scene,
    Thing,
    draw_scene,
)
from glimt_world.train.data import scenes

BALL = Thing("ball", "red", "still", x=0.0, z=3.0, size=0.35, amount=0.0, phase=0.0)
SCENE = Scene((BALL,), floor="grey", sky="blue", camera="still", light=0.0, camera_amount=1.0)


def _drawn(count: int) -> list[Scene]:
    rng = np.random.default_rng(3)
    return [draw_scene(rng) for _ in range(count)]


def _redness(frame: np.ndarray) -> np.ndarray:
    pixels = frame.astype(float)
    return np.clip(pixels[..., 0] - pixels[..., 1:].max(-1), 0, None)


def _centre(frame: np.ndarray) -> tuple[float, float]:
    weight = _redness(frame)
    rows, cols = np.indices(weight.shape)
    return float((weight * rows).sum() / weight.sum()), float((weight * cols).sum() / weight.sum())


def test_scenes_hold_every_word_and_never_a_colour_twice() -> None:
    drawn = _drawn(1500)
    things = [thing for scene in drawn for thing in scene.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(OBJECT_COLOURS)
    assert {t.motion for t in things} == set(MOTIONS)
    assert {s.floor for s in drawn} == set(FLOOR_COLOURS)
    assert {s.sky for s in drawn} == set(SKY_COLOURS)
    assert {s.camera for s in drawn} == set(CAMERAS)
    for scene in drawn:
        named = [t.colour for t in scene.things]
        assert len(set(named)) == len(named)
        assert not {scene.floor, scene.sky} & set(named)


def test_held_out_scenes_are_one_in_sixteen_and_never_trained_on() -> None:
    share = np.mean([scene.held_out for scene in _drawn(4000)])
    assert share == pytest.approx(1 / 16, abs=0.012)  # three deviations of a share of 4000
    assert not any(scene.held_out for scene in islice(scenes(1), 300))
    assert all(scene.held_out for scene in islice(scenes(1, held_out=True), 50))


def test_the_same_scene_gives_the_same_bytes_and_a_shorter_clip_the_same_moments() -> None:
    clip = render(SCENE, num_frames=9)
    assert clip.dtype == np.uint8 and clip.shape == (9, 96, 96, 3)
    assert np.array_equal(clip, render(SCENE, num_frames=9))
    assert np.array_equal(clip[::2], render(SCENE, num_frames=5))


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("towards", 0, 1), ("away", 0, -1)]
)
def test_things_go_where_they_are_said_to(motion: str, axis: int, sign: int) -> None:
    thing = replace(BALL, motion=motion, amount=1.4)
    clip = render(replace(SCENE, things=(thing,)))
    assert sign * (_centre(clip[-1])[axis] - _centre(clip[0])[axis]) > 3
    if axis == 0:
        assert sign * (np.sum(_redness(clip[-1])) - np.sum(_redness(clip[0]))) > 0


@pytest.mark.parametrize(("camera", "sign"), [("pan left", 1), ("pan right", -1)])
def test_a_pan_shifts_the_picture_against_its_direction(camera: str, sign: int) -> None:
    clip = render(replace(SCENE, camera=camera))
    assert sign * (_centre(clip[-1])[1] - _centre(clip[0])[1]) > 10


@pytest.mark.parametrize(("camera", "sign"), [("zoom in", 1), ("zoom out", -1)])
def test_a_zoom_scales_the_picture(camera: str, sign: int) -> None:
    clip = render(replace(SCENE, camera=camera))
    assert sign * np.log(np.sum(_redness(clip[-1])) / np.sum(_redness(clip[0]))) > 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_antialiased(shape: str) -> None:
    """On a thing's outline a picture is near the mean of a finer one, and far nearer than point samples of it are."""
    scene = replace(SCENE, things=(replace(BALL, shape=shape, phase=0.1),))
    coarse = render(scene, num_frames=1)[0].astype(float)
    fine = render(scene, num_frames=1, height=576, width=576)[0].astype(float).reshape(96, 6, 96, 6, 3)
    mean, points = fine.mean((1, 3)), fine[:, 3, :, 3]
    outline = np.ptp(_redness(fine), axis=(1, 3)) > 60
    error, aliased = (np.mean(np.abs(picture - mean)[outline]) for picture in (coarse, points))
    assert outline.sum() > 40
    assert error < 0.5 * aliased


def test_a_thing_casts_a_shadow_on_the_floor_away_from_the_light() -> None:
    for light in (-1.0, 1.0):
        with_ball = render(replace(SCENE, light=light), num_frames=1)[0].astype(float)
        without = render(replace(SCENE, things=(), light=light), num_frames=1)[0].astype(float)
        darker = np.clip(without - with_ball, 0, None).min(-1) * (_redness(with_ball) < 5)
        assert darker.sum() > 500
        cols = np.indices(darker.shape)[1]
        assert np.sign((darker * cols).sum() / darker.sum() - 47.5) == -np.sign(light)


def _says(words: dict[str, tuple[str, ...]], text: str) -> set[str]:
    return {name for name, ways in words.items() if any(re.search(rf"\b{re.escape(w)}\b", text) for w in ways)}


def test_captions_say_what_they_state_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    shapes = {name: tuple(ways) for name, ways in captions.SHAPE_WORDS.items()}
    cameras = {name: tuple(ways) for name, ways in captions.CAMERA_WORDS.items()}
    for scene in _drawn(300):
        made = captions.caption(scene, rng)
        text = made.text.lower()
        assert _says(shapes, text) == {t.shape for t in scene.things}
        assert _says(cameras, text) == ({scene.camera} if made.camera else set())
        assert ("sky" in text) == (made.sky is not None)
        for thing in scene.things:
            ways = (*captions.MOTION_WORDS[thing.motion], *captions.ROLLING.get(thing.motion, ()))
            assert any(way in text for way in ways)
            assert any(way in text for way in captions.COLOUR_WORDS.get(thing.colour, (thing.colour,)))


def test_held_out_captions_are_the_same_for_the_same_seed_and_varied() -> None:
    first = captions.held_out(40)
    assert first == captions.held_out(40)
    assert len({made.text for made in first}) == 40

"""The judge: right on what the renderer drew, symmetric where the world is, calm on what is no clip of the world."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from glimt_world.captions import Caption, Stated, caption
from glimt_world.judge import ATTRIBUTES, Check, Rate, Reading, accuracy, compare, judge_clip, read_clip, table, verdict
from glimt_world.judge.damage import damaged, psnr
from glimt_world.judge.sweep import ModelSweep, ground_truth, of_model, sheet
from glimt_world.render import render
from glimt_world.scene import Scene, Thing, draw_scene


def _scene(motion: str = "still", camera: str = "still", **thing: object) -> Scene:
    amounts = {"left": 1.3, "right": 1.3, "towards": 1.8, "away": 1.8, "bouncing": 0.7, "spinning": 0.7, "growing": 0.9}
    one = Thing("ball", "red", motion, 0.05, 3.4, 0.35, amounts.get(motion, 0.0), 0.3)
    return Scene((replace(one, **thing),), "green", "blue", camera, 0.4, 1.0)  # type: ignore[arg-type]


def _words(reading: Reading) -> list[tuple[str, str, str]]:
    return [(t.colour, t.shape, t.motion) for t in reading.things]


def test_ground_truth_is_read_right() -> None:
    tally, _ = ground_truth(200, seed=11)
    for name, rate in tally.rates().items():
        assert rate.value >= 0.99, f"{name}: {rate}, mistakes {tally.mistakes}"


def test_damaged_ground_truth_is_read_nearly_right() -> None:
    tally, quality = ground_truth(20, seed=12, damage=True)
    assert quality is not None
    assert 28 < quality < 33
    rates = tally.rates()
    for name in ("colour", "shape", "motion", "floor", "sky", "camera"):
        assert rates[name].value >= 0.90, f"{name}: {rates[name]}, mistakes {tally.mistakes}"


@pytest.mark.parametrize("motion", ["left", "right", "still", "growing"])
def test_mirrored_clip_swaps_left_and_right(motion: str) -> None:
    swap = {"left": "right", "right": "left", "pan left": "pan right", "pan right": "pan left"}
    for camera in ("still", "pan left", "zoom in"):
        frames = render(_scene(motion, camera))
        plain, mirrored = read_clip(frames), read_clip(np.ascontiguousarray(frames[:, :, ::-1]))
        assert _words(plain) == [("red", "ball", motion)]
        assert _words(mirrored) == [("red", "ball", swap.get(motion, motion))]
        assert mirrored.camera == swap.get(camera, camera)


def test_reversed_clip_swaps_direction() -> None:
    swap = {"left": "right", "right": "left", "towards": "away", "away": "towards"}
    for motion in ("left", "towards", "away", "bouncing", "spinning", "still"):
        backwards = read_clip(render(_scene(motion, "zoom in"))[::-1])
        assert _words(backwards) == [("red", "ball", swap.get(motion, motion))]
        assert backwards.camera == "zoom out"


@pytest.mark.parametrize("motion", ["left", "towards", "bouncing", "growing", "spinning", "still"])
def test_every_second_frame_and_twice_the_size_read_the_same(motion: str) -> None:
    scene = _scene(motion, "pan left", shape="cube")
    whole = read_clip(render(scene))
    for other in (render(scene)[::2], render(scene, height=192, width=192, num_frames=17)):
        reading = read_clip(other)
        assert _words(reading) == _words(whole) == [("red", "cube", motion)]
        assert (reading.floor, reading.sky, reading.camera) == (whole.floor, whole.sky, whole.camera)


def test_camera_is_measured_in_the_renderers_units() -> None:
    panned, zoomed = read_clip(render(_scene("right", "pan right"))), read_clip(render(_scene("left", "zoom in")))
    # camera_at: shift goes from 0.15 to -0.15 widths, log zoom from -0.225 to 0.225.
    assert panned.shift[-1] - panned.shift[0] == pytest.approx(-0.30, abs=0.03)
    assert np.log(zoomed.zoom[-1] / zoomed.zoom[0]) == pytest.approx(0.45, abs=0.05)
    assert np.ptp(zoomed.shift) < 0.05


def test_tracks_lie_on_the_thing() -> None:
    reading = read_clip(render(_scene("still", x=0.0, z=3.0, size=0.36)))
    # Pinhole: half width FOCAL * size / z = 0.126 about the middle; the base at -0.12 + 1.05 * 1.15 / 3 below it.
    left, _, right, bottom = np.median(reading.things[0].track, axis=0)
    assert left == pytest.approx(0.5 - 0.126, abs=0.02)
    assert right == pytest.approx(0.5 + 0.126, abs=0.02)
    assert bottom == pytest.approx(0.5 - 0.12 + 0.4025, abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clips_of_few_frames_are_read(count: int) -> None:
    reading = read_clip(render(_scene(), num_frames=count))
    assert _words(reading) == [("red", "ball", "still")]
    assert (reading.floor, reading.sky, reading.camera) == ("green", "blue", "still")


def test_garbage_is_read_without_a_crash_and_judged_wrong() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (33, 96, 96, 3), np.uint8)
    black, white = np.zeros_like(noise), np.full_like(noise, 255)
    stripes = np.broadcast_to(((np.arange(96) // 7 % 2) * 255).astype(np.uint8)[None, None, :, None], noise.shape)
    for frames in (noise, black, white, noise[:1], noise[:2, :10, :10], np.ascontiguousarray(stripes)):
        for motion in ("left", "bouncing", "spinning"):
            result = judge_clip(frames, _scene(motion))
            assert result["all_right"] is False
            assert not (result["colour 1"] and result["shape 1"] and result["motion 1"])


def test_without_opencv_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"make test .*pip install -e '\.\[judge\]'"):
        read_clip(np.zeros((1, 8, 8, 3), np.uint8))


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\]"):
        read_clip(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        read_clip(np.zeros((3, 8, 8, 3)))  # type: ignore[arg-type]


def test_only_what_is_stated_is_judged_and_things_are_matched() -> None:
    rng = np.random.default_rng(3)
    scene = next(s for s in iter(lambda: draw_scene(rng, two=1.0), None) if len(s.things) == 2)
    frames = render(scene)
    turned = Caption(
        "", tuple(Stated(t.shape, t.colour, t.motion) for t in scene.things[::-1]), scene.floor, None, None
    )
    result = judge_clip(frames, turned)
    assert result["sky"] is None
    assert result["camera"] is None
    assert result["all_right"] is True
    wrong = replace(turned, floor=next(f for f in ("grey", "blue") if f != scene.floor))
    assert judge_clip(frames, wrong)["floor"] is False
    one = replace(turned, things=turned.things[:1])
    assert judge_clip(frames, one) | {"all_right": True} == {
        **{name: value for name, value in result.items() if not name.endswith(" 2")},
        "count": False,
    }


def test_accuracy_counts_what_was_stated() -> None:
    checks = [Check("colour 1", "red", "red"), Check("colour 2", "blue", None), Check("sky", None, "grey")]
    rates = accuracy([verdict(checks), verdict(checks[:1])])
    assert tuple(rates) == ATTRIBUTES
    assert rates["colour"] == Rate(((1, 2), (1, 1)))  # two things of one clip are of one caption
    assert rates["sky"] == Rate(())
    assert rates["all_right"] == Rate(((0, 1), (1, 1)))
    assert "66.67" in table(rates)
    assert accuracy([verdict(checks), verdict(checks[:1])], ["a ball"] * 2)["colour"] == Rate(((2, 3),))


def test_with_one_verdict_a_caption_the_interval_is_wilsons() -> None:
    z2 = 1.959964**2
    # All right: the lower end is n / (n + z^2); half right: symmetric about one half.
    assert Rate(((1, 1),) * 40).interval == pytest.approx((40 / (40 + z2), 1.0))
    half = Rate(((1, 1), (0, 1)) * 50)
    assert half.independent == pytest.approx(100)
    assert half.interval == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert Rate(()).interval == (0.0, 1.0)


def test_seeds_that_repeat_a_caption_add_nothing_to_what_is_known() -> None:
    once, thrice = Rate(((1, 1),) * 40 + ((0, 1),) * 10), Rate(((3, 3),) * 40 + ((0, 3),) * 10)
    assert (thrice.right, thrice.total, thrice.value) == (120, 150, 0.8)
    assert thrice.independent == pytest.approx(once.independent, rel=0.03)
    assert thrice.interval == pytest.approx(once.interval, abs=2e-3)
    assert Rate(((3, 3),) * 50).interval == Rate(((1, 1),) * 50).interval  # nothing shows how alike they are
    assert Rate(((2, 3),) * 50).independent == 150  # more even than by chance does not count as more


@pytest.mark.parametrize(("alike", "share"), [(0.0, 0.75), (0.3, 0.9), (0.7, 0.75), (0.7, 0.9)])
def test_the_interval_holds_the_truth_as_often_as_it_says(alike: float, share: float) -> None:
    """Captions of different hardness, one or two things each, three seeds: ``alike`` is the correlation within one."""
    rng, trials, held = np.random.default_rng(1), 600, 0
    strength = 1 / alike - 1 if alike else 0.0
    for _ in range(trials):
        hardness = rng.beta(share * strength, (1 - share) * strength, 100) if alike else np.full(100, share)
        totals = 3 * rng.integers(1, 3, 100)
        rights = rng.binomial(totals, hardness)
        low, high = Rate(tuple(zip(rights.tolist(), totals.tolist(), strict=True))).interval
        held += low <= share <= high
    assert 0.92 <= held / trials <= 0.985


def test_a_sweep_goes_on_from_its_log(tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []

    def generate(text: str, seed: int) -> np.ndarray:
        made.append((text, seed))
        return render(_scene())

    log = tmp_path / "verdicts.jsonl"
    first = of_model(ModelSweep("some model", 2, 1), generate, log)
    assert len(made) == len(first.results) == len(log.read_text().splitlines()) == 2
    second = of_model(ModelSweep("some model", 2, 2), generate, log)
    assert len(made) == 4  # two more seeds only
    assert second.results[:2] == first.results
    assert sum(total for _, total in second.rates()["count"].captions) == 4
    assert len(second.rates()["count"].captions) == 2  # two seeds of each
    assert of_model(ModelSweep("some model", 2, 2, steps=3), generate, log).results
    assert len(made) == 8  # other settings are other clips
    sheet(second.shown, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert json.loads(json.dumps(second.summary()))["clips"] == 4
    log.write_text("nonsense\n")
    with pytest.raises(ValueError, match="not of a sweep's log"):
        of_model(ModelSweep("some model", 1, 1), generate, log)


def test_captions_of_a_scene_hold_for_its_render() -> None:
    rng = np.random.default_rng(4)
    for _ in range(3):
        scene = draw_scene(rng)
        frames = render(scene)
        reading = read_clip(frames)
        assert all(verdict(compare(reading, caption(scene, rng)))["all_right"] for _ in range(5))


def test_damage_is_what_it_says() -> None:
    frames = render(_scene("left"), num_frames=5)
    bad = damaged(frames, np.random.default_rng(0))
    assert bad.shape == frames.shape
    assert 27 < psnr(frames, bad) < 34
    assert psnr(frames, frames) == float("inf")

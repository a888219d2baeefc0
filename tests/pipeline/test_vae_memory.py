"""Memory of the autoencoder: the plan's peak is the peak, it does not grow with frames, and tiles bring it down."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine import Engine
from glimt.errors import MemoryBudgetError, RequestError
from glimt.models.wan.config import WanVaeConfig
from glimt.plan.vae import Way, encode_bytes, plan_decode
from glimt.profile import vae_decode_flops
from glimt.shapes import LatentGrid, PixelGrid
from models import tiny

WAN21 = WanVaeConfig()
HERE = Path(__file__).parent


def measured(form: str, *cases: list[int]) -> list[dict]:
    command = [sys.executable, str(HERE / "peaks.py"), form, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "cases"),
    [
        ("bundled", [[4, 16, 20], [4, 24, 24], [4, 24, 24, 70_000_000], [-9, 160, 192]]),
        ("2.1", [[4, 16, 16], [4, 12, 24], [4, 16, 24, 80_000_000], [-9, 128, 128]]),
        ("2.2", [[4, 12, 12], [4, 8, 20], [4, 16, 20, 150_000_000], [-9, 256, 256]]),
    ],
)
def test_the_planned_peak_is_the_peak(form: str, cases: list[list[int]]) -> None:
    for case, found in zip(cases, measured(form, *cases), strict=True):
        assert found["planned"] == pytest.approx(found["peak"], rel=0.1), (case, found)
        assert len(case) == 3 or (found["tiles"] != [1, 1] and found["peak"] <= case[3]), (case, found)


@pytest.mark.slow
def test_the_peak_is_flat_from_17_to_961_frames() -> None:
    few, many, few_in, many_in = measured("bundled", [5, 6, 6], [241, 6, 6], [-17, 48, 48], [-961, 48, 48])
    assert few["planned"] == many["planned"] and few_in["planned"] == many_in["planned"]
    assert many["peak"] <= 1.05 * few["peak"] + 500_000
    latents = 4 * 24 * 241 * 6 * 6  # what encoding leaves grows, as it must; twice while it is put together
    assert many_in["peak"] <= 1.05 * few_in["peak"] + 500_000 + 2 * latents


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 300),
    height=st.integers(1, 90),
    width=st.integers(1, 160),
    room=st.integers(10**7, 10**10),
    way=st.sampled_from(Way),
)
def test_what_is_chosen_fits_if_anything_does_and_is_not_cut_finer_than_it_must(
    frames: int, height: int, width: int, room: int, way: Way
) -> None:
    grid = LatentGrid(16, frames, height, width)
    plan = plan_decode(WAN21, grid, 4, room, way=way)
    roomier = plan_decode(WAN21, grid, 4, 2 * room, way=way)
    assert roomier.flops <= plan.flops
    assert plan.flops == vae_decode_flops(WAN21, grid, plan.rows, plan.columns)
    assert (
        replace(plan, chunk=0) == replace(plan_decode(WAN21, grid, 4, plan.peak_bytes, way=way), chunk=0)
        or plan.peak_bytes > room
    )
    if plan.peak_bytes > room:  # nothing fits
        assert plan.peak_bytes <= plan_decode(WAN21, grid, 4, 2**63, way=way).peak_bytes


def test_memory_does_not_depend_on_the_number_of_frames() -> None:
    for way in Way:
        sizes = {
            plan_decode(WAN21, LatentGrid(16, frames, 60, 104), 4, 2**63, way=way).peak_bytes for frames in (5, 21, 241)
        }
        assert len(sizes) == 1
    clips = [PixelGrid(frames, 480, 832) for frames in (17, 81, 961)]
    for by_frames in (True, False):
        assert len({encode_bytes(WAN21, clip, 4, by_frames=by_frames) for clip in clips}) == 1


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(tiny.folder("t2v"), device="cpu")


def latents(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(0))


def test_tiles_that_fit_give_the_frames_of_whole_pictures(engine: Engine) -> None:
    z = latents(3, 30, 41)
    whole = engine.plan_decode(z.shape)
    weights = engine._planner.weights_bytes["vae"]
    budgets = range(weights + whole.peak_bytes, weights, -whole.peak_bytes // 50)
    plans = ((budget, engine.plan_decode(z.shape, memory_budget=budget)) for budget in budgets)
    budget, tiled = next((budget, plan) for budget, plan in plans if plan.tiled)
    assert not whole.tiled and tiled.tiled and tiled.peak_bytes + weights <= budget
    assert "tiles" in str(tiled) and "whole pictures" in str(whole)
    expected = list(engine.decode(z, fps=24))
    found = list(engine.decode(z, fps=24, memory_budget=budget))
    assert [chunk.index for chunk in found] == [chunk.index for chunk in expected] == [0, 1, 5]
    for a, b in zip(found, expected, strict=True):
        assert a.frames.shape == b.frames.shape
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1  # a pixel at the edge of two levels may round apart


def test_nothing_fits_and_what_would(engine: Engine) -> None:
    with pytest.raises(MemoryBudgetError, match="These would fit") as caught:
        engine.plan_decode((1, 4, 5, 200, 200), memory_budget=60_000_000)
    assert re_fits(engine, str(caught.value), 60_000_000)
    with pytest.raises(MemoryBudgetError, match="No size fits"):
        engine.plan_decode((1, 4, 5, 20, 20), memory_budget=1_000_000)
    with pytest.raises(MemoryBudgetError, match="encoding 5 frames of 4096x4096"):
        engine.plan_encode(PixelGrid(5, 4096, 4096), memory_budget=60_000_000)


def re_fits(engine: Engine, message: str, budget: int) -> bool:
    advice = message.split("These would fit: ")[1].rstrip(".").split("; ")[0]
    size = next(word for word in advice.split() if "x" in word and word[0].isdigit())
    width, height = (int(side) for side in size.split("x"))
    return not engine.plan_decode((1, 4, 5, height // 8, width // 8), memory_budget=budget).peak_bytes > budget


def test_latents_and_clips_of_wrong_sizes_are_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"latents: \[1, 5, 3, 4, 4\]"):
        engine.plan_decode((1, 5, 3, 4, 4))
    with pytest.raises(RequestError) as caught:
        engine.plan_encode(PixelGrid(6, 30, 50))
    assert caught.value.fields == ("num_frames", "height", "width")
    with pytest.raises(RequestError, match="6 frames came, it takes 4 n \\+ 1; nearest: 5 or 9"):
        engine.encode(np.zeros((6, 32, 32, 3), np.uint8) for _ in range(1))


def test_encoding_takes_frames_as_they_come(engine: Engine) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    whole, singly = engine.encode([clip]), engine.encode(clip[i : i + 1] for i in range(9))
    assert torch.equal(whole, singly) and whole.shape == (1, 4, 3, 4, 6)
    vae = engine._components.vae()
    with torch.no_grad():
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        expected = vae.normalize(vae.encode(pixels)[0])
    assert tiny.relative_error(whole, expected) <= 1e-6
    assert engine.encode([clip[:1]]).shape == (1, 4, 1, 4, 6)

"""Previews: small clips by the tiny decoder or a linear map, what makes them chosen by cost and told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine import Engine
from glimt.models import latent_rgb
from glimt.models.taehv.config import TinyConfig
from glimt.models.wan.config import WanVaeConfig
from glimt.pipeline import previews
from glimt.pipeline.events import StageEvent, StepState
from glimt.plan.previews import MOST_SHARE, plan_preview
from glimt.report import RunReport
from glimt.request import GenerateRequest
from glimt.shapes import LatentGrid
from models import tiny
from models.published_taehv import FORMS, published

REQUEST = GenerateRequest(
    "a red ball", "slowly", height=32, width=48, num_frames=17, num_inference_steps=3, seed=1, preview_every=2
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where maps are kept: a folder of the test's own. One clip is enough to fit one."""
    monkeypatch.setattr(previews, "FIT_CLIPS", 1)
    monkeypatch.setenv(previews.VARIABLE, str(tmp_path / "maps"))
    return tmp_path / "maps"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny.folder("t2v"), device="cpu", tiny_decoder=str(tiny.tiny_decoder("t2v"))) as made:
        yield made


def run(engine: Engine, request: GenerateRequest) -> tuple[list[StepState], list[np.ndarray | None], RunReport]:
    events = list(engine.stream(request))
    steps = [event for event in events if isinstance(event, StepState)]
    (report,) = [event.report for event in events if isinstance(event, StageEvent) and event.report is not None]
    return steps, [step.preview() for step in steps], report


@pytest.mark.parametrize("by", ["tiny", "linear"])
def test_previews_are_small_clips_when_asked_for(engine: Engine, by: str) -> None:
    request = replace(REQUEST, preview=by)
    plan = engine.plan(request).preview
    assert plan is not None and plan.by == by
    _, shown, report = run(engine, request)
    assert [clip is not None for clip in shown] == [False, True, False]
    assert shown[1].shape == (5, plan.height, plan.width, 3) and shown[1].dtype == np.uint8
    assert str(plan) in report.previews and str(plan) in str(engine.plan(request))
    assert engine.plan(replace(request, preview_every=0)).preview is None
    assert np.array_equal(engine.generate(request).frames, engine.generate(replace(request, preview_every=0)).frames)


def test_a_tiny_preview_is_the_tiny_decoder_s_glimpse_of_the_estimate(engine: Engine) -> None:
    request = replace(REQUEST, preview="tiny")
    steps, shown, _ = run(engine, request)
    plan = engine.plan(request).preview
    assert plan is not None
    with torch.no_grad():
        pixels = engine._components.tiny().glimpse(steps[1].x0, plan.doublings)[0].permute(1, 2, 3, 0)
    assert np.abs(((pixels / 2 + 0.5) * 255).numpy() - shown[1]).max() <= 1


def test_a_map_is_fitted_once_for_an_autoencoder_and_the_report_says_which(engine: Engine, cache: Path) -> None:
    request = replace(REQUEST, preview="linear")
    _, first, report = run(engine, request)
    assert "fitted in" in report.previews and f"kept in {cache}" in report.previews
    (file,) = cache.iterdir()
    assert file.stem == engine._planner.folder.component("vae").digest()
    _, again, report = run(engine, request)
    assert f"read from {file}" in report.previews and np.array_equal(first[1], again[1])
    file.write_bytes(b"not a map")
    _, mended, report = run(engine, request)
    assert "fitted in" in report.previews and np.array_equal(first[1], mended[1])
    assert [stage.name for stage in report.stages] == ["text", "preview", "denoise", "decode"]


def test_a_cache_that_cannot_be_written_or_is_off_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(previews.VARIABLE, str(tmp_path / "file"))
    assert "could not be kept" in run(engine, replace(REQUEST, preview="linear"))[2].previews
    monkeypatch.setenv(previews.VARIABLE, "off")
    assert "not kept (GLIMT_PREVIEWS is off)" in run(engine, replace(REQUEST, preview="linear"))[2].previews


def test_a_staged_run_fits_its_map_too(engine: Engine) -> None:
    request = replace(REQUEST, preview="linear")
    with Engine.open(tiny.folder("t2v"), device="cpu") as bare:
        budget = bare.plan(request).peak_bytes - 1
    with Engine.load(tiny.folder("t2v"), device="cpu", memory_budget_bytes=budget) as small:
        assert small.plan(request).staged
        assert np.array_equal(run(small, request)[1][1], run(engine, request)[1][1])


def tiny_config(name: str) -> TinyConfig:
    shapes = {key: tuple(t.shape) for key, t in published(FORMS[name].small()).state_dict().items()}
    return TinyConfig.from_shapes(shapes)


TINY, VAE = tiny_config("taew2_1"), WanVaeConfig()


@settings(deadline=None)
@given(step=st.integers(1, 10**13), frames=st.integers(1, 31), size=st.integers(2, 90))
def test_left_to_the_plan_a_preview_takes_at_most_two_percent_of_a_step(step: int, frames: int, size: int) -> None:
    grid = LatentGrid(16, frames, size, size)
    plan = plan_preview("auto", TINY, VAE, grid, step, 4)
    long = plan_preview("auto", TINY, VAE, grid, 10**18, 4)
    assert (long.by, long.doublings, long.height) == ("tiny", 3, 8 * size)
    if plan.by == "tiny":
        assert plan.share <= MOST_SHARE
        assert (plan.frames, plan.height) == (frames, size * 2**plan.doublings)
    else:
        assert plan_preview("tiny", TINY, VAE, grid, step, 4).share > MOST_SHARE


def test_real_models_at_their_sizes_have_tiny_previews_and_say_their_cost() -> None:
    """Wan 2.1 T2V 1.3B at 81 frames of 480x832: 570 TFLOP a guided step, and the published decoder."""
    shapes = {key: tuple(t.shape) for key, t in published(FORMS["taew2_1"]).state_dict().items()}
    plan = plan_preview("auto", TinyConfig.from_shapes(shapes), VAE, LatentGrid(16, 21, 60, 104), 566 * 10**12, 2)
    assert plan.by == "tiny" and plan.share <= MOST_SHARE and plan.width >= 416


def test_a_linear_map_finds_the_linear_map_that_made_the_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 5, 3, 10, 12, generator=generator)
    truth = torch.randn(3 * 4, 9 * 5 + 1, generator=generator) * 0.02
    small = latent_rgb.apply(truth, latents)
    pixels = torch.zeros(4, 3, 9, 80, 96)
    pixels[:, :, ::4] = torch.nn.functional.interpolate(small.flatten(0, 1), scale_factor=4).view(4, 3, 3, 80, 96)
    assert small.abs().max() < 1, "a clamped picture is not linear"
    found = latent_rgb.fit(latents, pixels, 2)
    assert tiny.relative_error(found, truth) <= 0.02  # the ridge holds it back a little
    assert found.shape == truth.shape and not torch.equal(latent_rgb.fit(latents + 1, pixels, 2), found)


def test_drawn_clips_have_many_colours_and_move() -> None:
    clip = previews.drawn_clip(3, 9, 64, 96)
    assert clip.shape == (3, 9, 64, 96) and -1 <= clip.min() < -0.3 and 0.3 < clip.max() <= 1
    assert (clip[:, 0] - clip[:, -1]).abs().mean() > 0.02
    assert torch.equal(clip, previews.drawn_clip(3, 9, 64, 96)) and not torch.equal(
        clip, previews.drawn_clip(4, 9, 64, 96)
    )

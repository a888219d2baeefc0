"""The bundled model: small, whole, and the same frames in glimt and in Diffusers from the very same files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from glimt.engine import Engine
from glimt.models.zoo import BUNDLED
from glimt.pipeline.events import FrameChunk, StageEvent, StepState
from glimt.request import GenerateRequest
from glimt_world.train.tiny import compare

FOLDER = Path(__file__).parents[2] / "python/glimt_world/checkpoint"
PROMPT, NEGATIVE, SEED = "a red ball rolls left over a green floor", "a blue cube", 3
SMALL = {"height": 48, "width": 64, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 3.0}

# What a request needs none of: PyTorch's compiler and what it is made of, and a library of every model there is.
NEEDLESS = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
    "triton",
    "transformers",
    "diffusers",
)
LOOK = f"""
import sys
from glimt import Engine, GenerateRequest
request = GenerateRequest("a ball", height=32, width=32, num_frames=5, num_inference_steps=2)
with Engine.load(device="cpu") as engine:
    engine.generate(request)
print(*[name for name in {NEEDLESS!r} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(device="cpu") as engine:
        yield engine


def test_is_small() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert (FOLDER / "model_index.json") in files
    assert sum(file.stat().st_size for file in files) < 60e6


def test_loads_by_name_without_a_network(engine: Engine) -> None:
    card = engine.card
    assert (card.name, card.variant) == (BUNDLED, "ti2v")
    assert card.height >= 96 and card.width >= 96 and card.num_frames >= 33


def test_frames_are_those_of_diffusers(engine: Engine) -> None:
    from diffusers import WanPipeline

    request = GenerateRequest(PROMPT, NEGATIVE, seed=SEED, **SMALL)
    frames = engine.generate(request).frames
    pipe = WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    made = pipe(PROMPT, NEGATIVE, generator=generator, output_type="np", **SMALL)
    expected = (made.frames[0] * 255).round().astype(np.uint8)
    assert frames.shape == expected.shape == (9, 48, 64, 3)
    error = ((frames.astype(np.float64) - expected) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= 60


def test_previews_after_a_third_of_the_steps_are_like_the_clip_and_cost_little(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLIMT_PREVIEWS", str(tmp_path))
    request = GenerateRequest(PROMPT, NEGATIVE, seed=SEED, num_frames=17, preview_every=6)
    taken_s, chunks = [], []
    for event in engine.stream(request):
        if isinstance(event, StepState) and event.step == 6:
            for _ in range(6):
                began = time.perf_counter()
                preview = event.preview()
                taken_s.append(time.perf_counter() - began)
        elif isinstance(event, StageEvent) and event.report is not None:
            denoise_s = next(stage.ms for stage in event.report.stages if stage.name == "denoise") / 1000
        elif isinstance(event, FrameChunk):
            chunks.append(event.frames)
    assert preview is not None
    frames = np.concatenate(chunks)[::4].astype(float)
    f, h, w, _ = preview.shape
    small = frames.reshape(f, h, frames.shape[1] // h, w, frames.shape[2] // w, 3).mean((2, 4))
    assert np.corrcoef(preview.ravel(), small.ravel())[0, 1] >= 0.8
    assert engine.plan(request).preview.share <= 0.02  # type: ignore[union-attr]
    assert min(taken_s) <= 0.02 * denoise_s / 20


def test_its_tiny_decoder_gives_nearly_what_the_full_one_gives(engine: Engine) -> None:
    found = compare(engine._components.tiny(), engine._components.vae(), 2, size=96)  # held-out clips
    assert all(22 <= beside <= 60 for beside, _, _ in found)


def test_needs_no_compiler_and_no_model_library() -> None:
    """They took most of the time and memory of loading once; a single operation on a meta tensor brings them in."""
    user = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # which is for tests
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, env={**user, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []

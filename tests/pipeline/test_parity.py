"""From prompt to frames: the same checkpoint and seed give Diffusers' frames, with guidance and a negative prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glimt.engine import Engine
from glimt.request import GenerateRequest
from models import tiny

PROMPT, NEGATIVE, SEED, STEPS = "a red ball rolls left", "slowly blue cube", 5, 4
CASES = [
    ("t2v", 0),
    ("i2v", 1),
    ("flf2v", 2),
    ("t2v-a14b", 0),
    ("i2v-a14b", 1),
    ("i2v-a14b", 2),
    ("ti2v", 0),
    ("ti2v", 1),
]


def pictures(count: int) -> list[Any]:
    """Photographs of noise, of another size and shape than the clip."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (50, 70, 3), np.uint8) for _ in range(count)]


def settings(variant: str) -> dict[str, Any]:
    side = 32 if variant == "ti2v" else 16
    size = {"height": 2 * side, "width": 3 * side, "num_frames": 17}
    second = {"guidance_scale_2": 2.0} if variant.endswith("a14b") else {}
    return size | {"num_inference_steps": STEPS, "guidance_scale": 4.0} | second


def diffusers_frames(variant: str, images: list[Any]) -> np.ndarray:
    """[F, H, W, 3] uint8 of Diffusers' own pipeline, rounded as its users do."""
    from diffusers import WanImageToVideoPipeline, WanPipeline
    from PIL import Image

    kind = WanImageToVideoPipeline if images else WanPipeline
    pipe = kind.from_pretrained(tiny.folder(variant))
    pipe.set_progress_bar_config(disable=True)
    names = ("image", "last_image")
    given = {name: Image.fromarray(picture) for name, picture in zip(names, images, strict=False)}
    made = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
        **settings(variant),
        **given,
    )
    return (made.frames[0] * 255).round().astype(np.uint8)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    mean = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if mean == 0 else 10 * np.log10(255**2 / mean)


@pytest.mark.parametrize(("variant", "images"), CASES)
def test_frames_are_those_of_diffusers(variant: str, images: int) -> None:
    given = dict(zip(("image", "last_image"), pictures(images), strict=False))
    request = GenerateRequest(PROMPT, NEGATIVE, seed=SEED, shift=3.0, **settings(variant), **given)
    with Engine.load(tiny.folder(variant), device="cpu") as engine:
        frames = engine.generate(request).frames
    expected = diffusers_frames(variant, pictures(images))
    assert frames.shape == expected.shape and expected.std() > 20
    assert psnr_db(frames, expected) >= 60


def test_both_experts_take_part() -> None:
    """The boundary lies inside the schedule, or the case above would prove nothing of it."""
    for variant in ("t2v-a14b", "i2v-a14b"):
        engine = Engine.open(tiny.folder(variant), device="cpu")
        image = pictures(1)[0] if variant.startswith("i2v") else None
        plan = engine.plan(GenerateRequest(PROMPT, shift=3.0, image=image, **settings(variant)))
        assert {step.expert for step in plan.guidance} == {0, 1}
        assert {step.scale for step in plan.guidance} == {4.0, 2.0}


def test_without_guidance_too() -> None:
    from diffusers import WanPipeline

    chosen = settings("t2v") | {"guidance_scale": 1.0}
    with Engine.load(tiny.folder("t2v"), device="cpu") as engine:
        frames = engine.generate(GenerateRequest(PROMPT, seed=SEED, shift=3.0, **chosen)).frames
    pipe = WanPipeline.from_pretrained(tiny.folder("t2v"))
    pipe.set_progress_bar_config(disable=True)
    made = pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(SEED), output_type="np", **chosen)
    assert psnr_db(frames, (made.frames[0] * 255).round().astype(np.uint8)) >= 60

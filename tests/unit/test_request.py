"""A request either becomes a legal one or is refused with every bad field named."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.check import check_without_model
from glimt.errors import RequestError
from glimt.request import DECODERS, MAX_SEED, PREVIEWS, SOLVERS, GenerateRequest


@dataclass(frozen=True)
class StubCard:
    name: str = "stub"
    variant: str = "t2v"
    height: int = 96
    width: int = 160
    num_frames: int = 33
    fps: float = 16
    num_inference_steps: int = 20
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    shift: float = 3.0
    solver: str = "unipc"
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8
    z_dim: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    expand_timesteps: bool = False
    boundary_ratio: float | None = None


T2V = StubCard()
TI2V = StubCard(variant="ti2v", expand_timesteps=True, scale_factor_spatial=16, width=96)
I2V = StubCard(variant="i2v")
FLF2V = StubCard(variant="flf2v")
EXPERTS = StubCard(variant="t2v-a14b", boundary_ratio=0.875, guidance_scale=4.0, guidance_scale_2=3.0)
I2V_EXPERTS = StubCard(variant="i2v-a14b", boundary_ratio=0.9)
PICTURE = np.zeros((4, 6, 3), np.uint8)


def fields_at_fault(request: GenerateRequest, card: StubCard = T2V) -> set[str]:
    with pytest.raises(RequestError) as caught:
        request.resolve(card)
    return set(caught.value.fields)


def test_what_is_left_out_comes_from_the_model() -> None:
    resolved = GenerateRequest("a ball").resolve(T2V)
    assert (resolved.width, resolved.height, resolved.num_frames, resolved.fps) == (160, 96, 33, 16.0)
    assert (resolved.num_inference_steps, resolved.guidance_scale, resolved.guidance_scale_2) == (20, 5.0, None)
    assert (resolved.solver, resolved.shift, resolved.seeds) == ("unipc", 3.0, (0,))
    assert resolved.token_grid(T2V).count == 9 * 6 * 10


def test_all_problems_are_reported_at_once_with_the_nearest_legal_values() -> None:
    request = GenerateRequest(
        "  ", height=100, width=-3, num_frames=32, num_inference_steps=0, guidance_scale=math.nan, seed=-1,
        solver="uni-pc", shift=0.0, fps=0, num_videos_per_prompt=0, preview_every=-1, image=7, guidance_scale_2=1.0,
        preview="liner", decoder=3,
    )  # fmt: skip
    with pytest.raises(RequestError) as caught:
        request.resolve(T2V)
    given = {f.name for f in fields(request)} - {"negative_prompt", "last_image"}
    assert set(caught.value.fields) == given
    text = str(caught.value)
    assert (
        "29 or 33" in text
        and "96 or 112" in text
        and "did you mean 'unipc'" in text
        and "did you mean 'linear'" in text
    )


@pytest.mark.parametrize("frames, near", [(0, "1"), (-7, "1"), (2, "1 or 5"), (32, "29 or 33"), (34, "33 or 37")])
def test_near_frame_counts(frames: int, near: str) -> None:
    with pytest.raises(RequestError, match=rf"4n \+ 1; nearest: {near}$"):
        GenerateRequest("x", num_frames=frames).resolve(T2V)


@pytest.mark.parametrize("value", [True, 33.0, "33", None.__class__])
def test_counts_must_be_whole_numbers(value: Any) -> None:
    names = ("num_frames", "height", "width", "num_inference_steps", "seed", "num_videos_per_prompt", "preview_every")
    assert fields_at_fault(GenerateRequest("x", **dict.fromkeys(names, value))) == set(names)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "5", True, 10**400])
def test_numbers_must_be_finite(value: Any) -> None:
    names = ("guidance_scale", "guidance_scale_2", "shift", "fps")
    assert fields_at_fault(GenerateRequest("x", **dict.fromkeys(names, value)), EXPERTS) == set(names)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", None, 5, "\ud800"])
def test_prompts_that_say_nothing(prompt: Any) -> None:
    assert fields_at_fault(GenerateRequest(prompt)) == {"prompt"}


def test_the_last_variant_needs_a_seed_too() -> None:
    assert GenerateRequest("x", seed=MAX_SEED).resolve(T2V).seeds == (MAX_SEED,)
    assert fields_at_fault(GenerateRequest("x", seed=MAX_SEED, num_videos_per_prompt=2)) == {"seed"}
    assert GenerateRequest("x", seed=5, num_videos_per_prompt=3).resolve(T2V).seeds == (5, 6, 7)


def test_a_variant_alone_is_the_request_with_its_seed() -> None:
    many = GenerateRequest("x", seed=5, num_videos_per_prompt=3).resolve(T2V)
    assert many.variant(2) == GenerateRequest("x", seed=7).resolve(T2V)


def test_solvers_of_distilled_models_bring_their_own_steps_and_shift() -> None:
    dmd = GenerateRequest("x", solver="dmd").resolve(T2V)
    assert (dmd.num_inference_steps, dmd.shift) == (3, None)
    assert GenerateRequest("x", solver="dmd", shift=8.0).resolve(T2V).shift == 8.0
    assert GenerateRequest("x", solver="euler").resolve(T2V).shift == 3.0
    assert fields_at_fault(GenerateRequest("x", solver="rcm", shift=8.0)) == {"shift"}
    distilled = StubCard(solver="dmd", num_inference_steps=2, shift=5.0)
    assert GenerateRequest("x").resolve(distilled).shift == 5.0


def test_the_second_guidance_scale() -> None:
    assert GenerateRequest("x").resolve(EXPERTS).guidance_scale_2 == 3.0
    assert GenerateRequest("x", guidance_scale=2.5).resolve(EXPERTS).guidance_scale_2 == 2.5
    assert GenerateRequest("x", guidance_scale_2=1.5).resolve(EXPERTS).guidance_scale_2 == 1.5
    assert fields_at_fault(GenerateRequest("x", guidance_scale_2=1.5)) == {"guidance_scale_2"}


@pytest.mark.parametrize(
    "card, first, last, bad",
    [
        (T2V, PICTURE, None, {"image"}),
        (T2V, None, PICTURE, {"last_image", "image"}),
        (TI2V, PICTURE, PICTURE, {"last_image"}),
        (I2V, None, None, {"image"}),
        (I2V, PICTURE, PICTURE, {"last_image"}),
        (FLF2V, PICTURE, None, {"last_image"}),
        (FLF2V, None, None, {"image", "last_image"}),
        (I2V_EXPERTS, None, PICTURE, {"image"}),
    ],
)
def test_images_where_they_do_not_belong(card: StubCard, first: Any, last: Any, bad: set[str]) -> None:
    assert fields_at_fault(GenerateRequest("x", image=first, last_image=last), card) == bad


@pytest.mark.parametrize(
    "card, first, last",
    [
        (TI2V, None, None),
        (TI2V, PICTURE, None),
        (I2V, PICTURE, None),
        (FLF2V, PICTURE, PICTURE),
        (I2V_EXPERTS, PICTURE, None),
        (I2V_EXPERTS, PICTURE, PICTURE),
    ],
)
def test_images_where_they_belong(card: StubCard, first: Any, last: Any) -> None:
    GenerateRequest("x", image=first, last_image=last).resolve(card)


def test_one_frame_has_no_room_for_two_images() -> None:
    assert fields_at_fault(GenerateRequest("x", image=PICTURE, last_image=PICTURE, num_frames=1), FLF2V) == {
        "num_frames"
    }


@pytest.mark.parametrize(
    "image",
    [
        7,
        b"bytes",
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((4, 6, 3), np.int64),
        np.full((4, 6, 3), np.nan, np.float32),
        np.full((4, 6, 3), 200.0, np.float32),
        "/no/such/picture.png",
        "",
        "bad\0path.png",
    ],
)
def test_images_that_are_none(image: Any) -> None:
    request = GenerateRequest("x", image=image)
    assert fields_at_fault(request, I2V) == {"image"}
    assert isinstance(repr(request), str) and request == request


def test_a_folder_and_a_text_file_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture at all")
    assert fields_at_fault(GenerateRequest("x", image=tmp_path), I2V) == {"image"}
    assert fields_at_fault(GenerateRequest("x", image=tmp_path / "note.png"), I2V) == {"image"}


def test_arrays_tensors_and_pil_images_are_the_same_picture() -> None:
    Image = pytest.importorskip("PIL.Image")
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    forms = [pixels, pixels[:, ::-1][:, ::-1], Image.fromarray(pixels), torch.from_numpy(pixels), pixels / 255.0]
    assert len({GenerateRequest("x", image=form) for form in forms}) == 1


def test_an_array_is_copied() -> None:
    pixels = PICTURE.copy()
    request = GenerateRequest("x", image=pixels)
    pixels[:] = 9
    assert request == GenerateRequest("x", image=PICTURE)


def test_requests_survive_json(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    request = GenerateRequest("a ball", seed=3, image=PICTURE, last_image=path)
    assert GenerateRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_a_recorded_picture_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    record = GenerateRequest("x", image=path).to_dict()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(21))
    with pytest.raises(RequestError, match=r"image: .* has changed"):
        GenerateRequest.from_dict(record)


def test_a_record_with_unknown_names_or_damage_is_refused() -> None:
    record = {"promt": "x", "image": {"height": 1, "width": 1, "rgb_zlib_base64": "!!"}}
    with pytest.raises(RequestError, match="did you mean 'prompt'") as caught:
        GenerateRequest.from_dict(record)
    assert set(caught.value.fields) == {"promt", "prompt", "image"}


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NUMBERS = ANYTHING | st.integers(-5, 200)
REQUESTS = st.builds(
    GenerateRequest,
    prompt=st.text(max_size=20) | ANYTHING,
    negative_prompt=st.text(max_size=20) | ANYTHING,
    height=NUMBERS | st.integers(1, 20).map(lambda n: 32 * n),
    width=NUMBERS | st.integers(1, 20).map(lambda n: 32 * n),
    num_frames=NUMBERS | st.integers(0, 40).map(lambda n: 4 * n + 1),
    fps=NUMBERS,
    num_inference_steps=NUMBERS,
    guidance_scale=NUMBERS,
    guidance_scale_2=st.none() | NUMBERS,
    seed=NUMBERS,
    solver=st.none() | st.sampled_from(SOLVERS) | ANYTHING,
    shift=NUMBERS,
    image=st.none() | st.just(PICTURE) | ANYTHING,
    last_image=st.none() | st.just(PICTURE) | ANYTHING,
    num_videos_per_prompt=NUMBERS,
    preview_every=NUMBERS,
    preview=st.sampled_from(PREVIEWS) | ANYTHING,
    decoder=st.sampled_from(DECODERS) | ANYTHING,
)
CARDS = st.sampled_from([T2V, TI2V, I2V, FLF2V, EXPERTS, I2V_EXPERTS])
LEGAL: dict[str, Any] = {
    "prompt": "x", "negative_prompt": "", "seed": 0, "num_videos_per_prompt": 1, "preview_every": 0,
    "preview": "auto", "decoder": "vae", "image": None, "last_image": None,
}  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(request=REQUESTS, card=CARDS)
def test_any_request_is_made_legal_or_refused_by_name(request: GenerateRequest, card: StubCard) -> None:
    try:
        resolved = request.resolve(card)
    except RequestError as error:
        assert set(error.fields) <= {field.name for field in fields(request)}
        assert all(": " in problem for problem in error.problems)
        return
    assert resolved.as_request().resolve(card) == resolved
    assert resolved.pixel_grid() == resolved.latent_grid(card).pixels(
        card.scale_factor_temporal, card.scale_factor_spatial
    )
    assert resolved.token_grid(card).count >= 1 and resolved.prompt.strip() and resolved.shift != 0


@settings(max_examples=200, deadline=None)
@given(request=REQUESTS, card=CARDS)
def test_what_is_wrong_without_a_model_is_wrong_with_any(request: GenerateRequest, card: StubCard) -> None:
    try:
        check_without_model(request)
    except RequestError as error:
        assert set(error.fields) <= fields_at_fault(request, card)


@settings(deadline=None, max_examples=200)
@given(request=REQUESTS)
def test_mending_the_named_fields_mends_the_request(request: GenerateRequest) -> None:
    """No bad field hides behind another: what is not named is good."""
    try:
        request.resolve(T2V)
    except RequestError as error:
        replace(request, **{name: LEGAL.get(name) for name in error.fields}).resolve(T2V)

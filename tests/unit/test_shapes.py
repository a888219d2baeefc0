"""Pixels, latents and tokens agree with the VAE's and the patches' arithmetic; near sizes are the nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.shapes import LatentGrid, PixelGrid, nearest_sizes, round_frames

SCALES = st.sampled_from([1, 2, 4, 8])


def test_wan_21_at_480p() -> None:
    latents = PixelGrid(81, 480, 832).latents(16, 4, 8)
    assert latents.shape(1) == (1, 16, 21, 60, 104)
    assert latents.tokens((1, 2, 2)).count == 32760


def test_wan_22_ti2v_at_720p() -> None:
    assert PixelGrid(121, 704, 1280).latents(48, 4, 16).tokens((1, 2, 2)).count == 27280


@given(f=st.integers(1, 64), h=st.integers(1, 64), w=st.integers(1, 64), scale_t=SCALES, scale_s=SCALES)
def test_latents_and_pixels_are_inverse(f: int, h: int, w: int, scale_t: int, scale_s: int) -> None:
    latents = LatentGrid(4, f, h, w)
    assert latents.pixels(scale_t, scale_s).latents(4, scale_t, scale_s) == latents


@given(frames=st.integers(-100, 1000), scale=SCALES)
def test_near_frame_counts_are_legal_and_around(frames: int, scale: int) -> None:
    near = round_frames(frames, scale)
    assert all(n >= 1 and (n - 1) % scale == 0 for n in near)
    assert all(abs(n - frames) < scale for n in near) or frames < 1
    assert (near == (frames,)) == (frames >= 1 and (frames - 1) % scale == 0)


@given(size=st.integers(-100, 5000), multiple=st.integers(1, 64))
def test_near_sizes_are_legal_and_around(size: int, multiple: int) -> None:
    near = nearest_sizes(size, multiple)
    assert all(n > 0 and n % multiple == 0 for n in near)
    assert (near == (size,)) == (size > 0 and size % multiple == 0)
    assert size < multiple or all(abs(n - size) < multiple for n in near)


@pytest.mark.parametrize("grid", [PixelGrid(80, 64, 64), PixelGrid(81, 60, 64), PixelGrid(81, 64, 60)])
def test_a_clip_off_the_grid_has_no_latents(grid: PixelGrid) -> None:
    with pytest.raises(ValueError, match="grid"):
        grid.latents(16, 4, 8)


def test_latents_that_do_not_divide_have_no_tokens() -> None:
    with pytest.raises(ValueError, match="patches"):
        LatentGrid(16, 3, 5, 4).tokens((1, 2, 2))

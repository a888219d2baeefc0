"""A clip in any chunks and in any tiles is the same clip: bit for bit in chunks, to rounding in tiles."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.models.wan import vae_tiles
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.models.wan.vae_tiles import Tile
from glimt_kernels import references_only
from models import tiny

FORMS = ("t2v", "ti2v")  # Wan 2.1 (plain) and Wan 2.2 (residual, patches)
FRAMES = 7  # latent frames of the longest clip
SIZES = ((1, 1), (2, 3), (5, 7))


@cache
def model(form: str) -> WanVae:
    reference = tiny.vae(form)
    made = WanVae(WanVaeConfig.from_dict(dict(reference.config)))
    made.load_state_dict(reference.state_dict(), strict=True)
    return made.eval()


@cache
def latents(form: str, size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, model(form).config.z_dim, FRAMES, *size, generator=generator)


def decoded(form: str, z: torch.Tensor, plan: list[int], tile: Tile | None = None) -> torch.Tensor:
    carried = CausalCache(tile=tile)
    parts = z[:, :, : sum(plan)].split(plan, dim=2)
    return torch.cat([model(form).decode_chunk(part, carried) for part in parts], dim=2)


def encoded(form: str, x: torch.Tensor, plan: list[int]) -> torch.Tensor:
    carried = CausalCache()
    pixels = [1 + 4 * (plan[0] - 1), *(4 * n for n in plan[1:])]
    return torch.cat([model(form).encode_chunk(part, carried)[0] for part in x.split(pixels, dim=2)], dim=2)


def way(exact: bool) -> AbstractContextManager[None]:
    return references_only() if exact else nullcontext()


@cache
def one_by_one(form: str, size: tuple[int, int], exact: bool) -> torch.Tensor:
    with torch.no_grad(), way(exact):
        return decoded(form, latents(form, size), [1] * FRAMES)


chunk_plans = st.lists(st.integers(1, 4), min_size=1, max_size=FRAMES).filter(lambda plan: sum(plan) <= FRAMES)


@settings(max_examples=25, deadline=None)
@given(plan=chunk_plans, form=st.sampled_from(FORMS), size=st.sampled_from(SIZES), exact=st.booleans())
def test_any_chunks_decode_to_the_same_bits(plan: list[int], form: str, size: tuple[int, int], exact: bool) -> None:
    with torch.no_grad(), way(exact):
        found = decoded(form, latents(form, size), plan)
    assert torch.equal(found, one_by_one(form, size, exact)[:, :, : 4 * sum(plan) - 3])


@settings(max_examples=25, deadline=None)
@given(plan=chunk_plans, form=st.sampled_from(FORMS), exact=st.booleans())
def test_any_chunks_encode_to_the_same_bits(plan: list[int], form: str, exact: bool) -> None:
    side = 2 * model(form).config.scale_factor_spatial
    x = torch.rand(1, 3, 4 * sum(plan) - 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad(), way(exact):
        found = encoded(form, x, plan)
        assert torch.equal(found, encoded(form, x, [1] * sum(plan)))
        assert torch.equal(found, model(form).encode(x)[0])


@pytest.mark.parametrize("plan", [[1, 4, 2], [1, 1, 1, 1], [3, 3], [2, 5]])
@pytest.mark.parametrize("form", FORMS)
def test_the_way_of_chunks_equals_that_of_frames(form: str, plan: list[int]) -> None:
    """With gradients a chunk passes each layer whole: the way of training, and of a GPU."""
    found = decoded(form, latents(form, (2, 3)), plan).detach()
    expected = one_by_one(form, (2, 3), False)[:, :, : found.shape[2]]
    assert tiny.relative_error(found, expected) <= 1e-5
    side = 2 * model(form).config.scale_factor_spatial
    x = torch.rand(1, 3, 4 * sum(plan) - 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        frames = encoded(form, x, plan)
    assert tiny.relative_error(encoded(form, x, plan).detach(), frames) <= 1e-5


@torch.no_grad()
def test_a_batch_decodes_to_what_each_of_it_does() -> None:
    z = latents("ti2v", (2, 3), 2)
    both = decoded("ti2v", z, [2, 3])
    for index in range(2):
        assert tiny.relative_error(both[index : index + 1], decoded("ti2v", z[index : index + 1], [1, 4])) <= 1e-6


def test_a_still_needs_no_state() -> None:
    carried = CausalCache(keep=False)
    with torch.no_grad():
        still = model("t2v").decode_chunk(latents("t2v", (5, 7))[:, :, :1], carried)
    assert carried.size_bytes() == 0
    assert torch.equal(still, one_by_one("t2v", (5, 7), False)[:, :, :1])


@pytest.mark.parametrize("piece", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_smaller_pieces_give_the_same_clip(form: str, piece: int) -> None:
    carried = CausalCache(piece=piece)
    found = [model(form).decode_chunk(part, carried) for part in latents(form, (5, 7)).split([2, 5], dim=2)]
    assert tiny.relative_error(torch.cat(found, dim=2), one_by_one(form, (5, 7), False)) <= 1e-5
    side = 2 * model(form).config.scale_factor_spatial
    x = torch.rand(1, 3, 13, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    carried = CausalCache(piece=piece)
    means = [model(form).encode_chunk(part, carried)[0] for part in x.split([5, 8], dim=2)]
    assert tiny.relative_error(torch.cat(means, dim=2), model(form).encode(x)[0]) <= 1e-5


TILED = (23, 30)


@cache
def untiled(form: str) -> torch.Tensor:
    with torch.no_grad():
        return decoded(form, latents(form, TILED), [1, 1])


def assembled(form: str, rows: int, columns: int) -> torch.Tensor:
    config = model(form).config
    whole = torch.full_like(untiled(form), torch.nan)
    for tile in vae_tiles.tiles(config, *TILED, rows, columns):
        box = tile.core.scaled(config.scale_factor_spatial)
        part = decoded(form, latents(form, TILED), [2], tile)
        assert part.shape[3:] == (box.height, box.width)
        whole[..., box.top : box.bottom, box.left : box.right] = part
    return whole


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), form=st.sampled_from(FORMS))
def test_any_tiles_give_the_picture(rows: int, columns: int, form: str) -> None:
    with torch.no_grad():
        assert tiny.relative_error(assembled(form, rows, columns), untiled(form)) <= 1e-6


@pytest.mark.parametrize("level", range(4))
def test_what_lies_around_a_tile_is_no_more_than_its_pixels_depend_on(
    level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halos = vae_tiles.halos
    less = lambda config: tuple(n - 2 * (i == level) for i, n in enumerate(halos(config)))  # noqa: E731
    monkeypatch.setattr(vae_tiles, "halos", less)
    with torch.no_grad():
        assert tiny.relative_error(assembled("t2v", 2, 2), untiled("t2v")) > 1e-6

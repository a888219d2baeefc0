"""Noise: Diffusers' bits for a seed, batches made of single runs, fresh noise that depends on seed and step alone."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.errors import RequestError
from glimt.request import MAX_SEED
from glimt.sampling import initial_latents, renoise

SHAPE = (1, 4, 3, 5, 7)
SEEDS = st.integers(0, MAX_SEED - 4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 4)] * 4))
def test_initial_latents_are_those_of_diffusers(seed: int, shape: tuple[int, ...]) -> None:
    """Small shapes too: torch draws fewer than 16 numbers by another route."""
    latents = initial_latents((1, *shape), seed)
    assert latents.dtype == torch.float32 and latents.device.type == "cpu"
    assert torch.equal(latents, randn_tensor((1, *shape), generator=generator(seed), dtype=torch.float32))


def test_a_batch_is_that_of_diffusers_list_of_generators() -> None:
    shape = (3, *SHAPE[1:])
    theirs = randn_tensor(shape, generator=[generator(9), generator(10), generator(11)], dtype=torch.float32)
    assert torch.equal(initial_latents(shape, 9), theirs)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 1000))
def test_each_variant_of_a_batch_is_a_single_run(seed: int, step: int) -> None:
    batch_shape = (3, *SHAPE[1:])
    batch, fresh = initial_latents(batch_shape, seed), renoise(batch_shape, seed, step)
    for b in range(3):
        assert torch.equal(batch[b : b + 1], initial_latents(SHAPE, seed + b))
        assert torch.equal(fresh[b : b + 1], renoise(SHAPE, seed + b, step))


def test_fresh_noise_depends_on_seed_and_step_alone() -> None:
    first = renoise(SHAPE, 5, 2)
    torch.randn(100)
    renoise(SHAPE, 5, 0)
    assert torch.equal(renoise(SHAPE, 5, 2), first)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.random.get_rng_state()
    initial_latents(SHAPE, 1), renoise(SHAPE, 1, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_draws_are_standard_normal_and_independent() -> None:
    """Initial latents and the noise of several steps and seeds. n = 40960 numbers each: the mean, the variance and
    correlations have standard errors of at most sqrt(2/n) = 0.007; 0.035 is five of them, for 28 pairs and 8 draws."""
    shape = (1, 16, 4, 16, 40)
    draws = [initial_latents(shape, 3), initial_latents(shape, 4)]
    draws += [renoise(shape, seed, step) for seed in (3, 4) for step in (0, 1, 2)]
    rows = torch.stack([draw.flatten() for draw in draws]).double()
    assert rows.mean(dim=1).abs().max() < 0.035
    assert torch.linalg.matrix_norm(torch.cov(rows) - torch.eye(8), ord=torch.inf) < 8 * 0.035
    assert (torch.cov(rows) - torch.eye(8)).abs().max() < 0.035


@pytest.mark.parametrize("seed", [-1, MAX_SEED, 2**64, 1.0, "7", None, True])
def test_bad_seeds_are_refused(seed: object) -> None:
    """For a batch of two, the last legal seed is one less: MAX_SEED itself has no successor."""
    for draw in (lambda: initial_latents((2, 4), seed), lambda: renoise((2, 4), seed, 0)):  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=f"whole number from 0 to {MAX_SEED - 1}"):
            draw()

"""The random numbers of a request: float32, drawn on the CPU from its seed, so every device starts from the same ones.

A batch of variants is not one long draw. Row ``b`` of every tensor here belongs to the seed ``seed + b`` and to nothing
else, so variant ``b`` of a batch equals, bit for bit, a single run with that seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from glimt.errors import RequestError
from glimt.request import MAX_SEED


def initial_latents(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal latents ``[B, C, f, h, w]``, float32, on the CPU.

    For B = 1 the bits of Diffusers' ``randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(seed))``; for
    more, those of its list of generators seeded ``seed, seed + 1, ...``. Raises RequestError for a seed (of any row)
    outside 0 .. 2^63 - 1.
    """
    return _rows(shape, _row_seeds(shape, seed))


def renoise(shape: Sequence[int], seed: int, step: int) -> torch.Tensor:
    """The fresh standard normal noise that few-step solvers add after step ``step``: ``[B, C, f, h, w]``, float32, CPU.

    Row ``b`` comes from a CPU generator seeded with the first 8 bytes, as a little-endian number, of
    SHA-256("glimt renoise {seed + b} {step}"). So it depends on the seed and the step alone: not on what was drawn
    before, on the batch, or on other requests.
    """
    return _rows(shape, [_derived(row_seed, step) for row_seed in _row_seeds(shape, seed)])


def _rows(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    draws = [torch.randn((1, *shape[1:]), generator=generator, dtype=torch.float32) for generator in generators]
    return draws[0] if len(draws) == 1 else torch.cat(draws)


def _derived(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"glimt renoise {seed} {step}".encode("ascii")).digest()
    return int.from_bytes(digest[:8], "little")


def _row_seeds(shape: Sequence[int], seed: int) -> range:
    last = MAX_SEED - (shape[0] - 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= last:
        raise RequestError(f"seed: {seed!r} is not a whole number from 0 to {last}")
    return range(seed, seed + shape[0])

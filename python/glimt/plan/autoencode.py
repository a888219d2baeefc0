"""Decoding and encoding by themselves: what fits in memory, and what to say when nothing does.

``decoder``: ``"vae"`` or ``"tiny"``, as in a request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glimt import memory
from glimt.errors import MemoryBudgetError, RequestError
from glimt.plan.planner import ITEM_BYTES, Planner
from glimt.plan.previews import plan_tiny_decode, tiny_problems
from glimt.plan.vae import DecodePlan, encode_bytes
from glimt.shapes import LatentGrid, PixelGrid
from glimt.weights.folder import TINY


@dataclass(frozen=True)
class Room:
    """Memory for the autoencoder alone: its budget, and what of it its weights take."""

    budget: memory.Budget
    weights_bytes: int

    @classmethod
    def of(cls, planner: Planner, limit_bytes: int | None, held_bytes: int, network: str = "vae") -> Room:
        """``limit_bytes``: of this call, in place of the configured or the free memory."""
        limit = planner.config.memory_budget_bytes if limit_bytes is None else limit_bytes
        return cls(memory.budget(limit, planner.device, held_bytes), planner.weights_bytes[network])

    def require(self, what: str, planner: Planner, clip: PixelGrid, need: Callable[[PixelGrid], int]) -> None:
        """MemoryBudgetError, with what would fit, where ``need(clip)`` bytes and the weights are above the budget."""
        room = self.budget.limit_bytes - self.weights_bytes
        if need(clip) <= room:
            return
        asked = (
            f"{what} {clip} with {planner.card.name} needs about {_megabytes(need(clip) + self.weights_bytes)} MB; "
            f"the budget is {_megabytes(self.budget.limit_bytes)} MB ({self.budget.source})"
        )
        scale_t, scale_s = planner.card.scale_factor_temporal, planner.card.scale_factor_spatial
        found = memory.what_would_fit(need, clip, scale_t, (scale_s, scale_s), room)
        if found:
            raise MemoryBudgetError(f"{asked}. These would fit: {'; '.join(found)}.")
        least = need(memory.smallest((scale_s, scale_s))) + self.weights_bytes
        raise MemoryBudgetError(f"{asked}. No size fits: the smallest picture needs {_megabytes(least)} MB.")


def plan_decode(
    planner: Planner, grid: LatentGrid, limit_bytes: int | None, held_bytes: int, decoder: str = "vae"
) -> DecodePlan:
    """How latents are decoded within the budget.

    Raises:
        RequestError: a tiny decoder that is not there, or that the quality does not allow.
        MemoryBudgetError: says what would fit.
    """
    card, tiny = planner.card, planner.tiny
    problems = tuple(tiny_problems({"decoder": decoder}, card.name, tiny, planner.config.quality))
    if problems:
        raise RequestError(*problems)
    clip = grid.pixels(card.scale_factor_temporal, card.scale_factor_spatial)
    if decoder == "vae" or tiny is None:
        room = Room.of(planner, limit_bytes, held_bytes)
        free = room.budget.limit_bytes - room.weights_bytes
        room.require("decoding", planner, clip, lambda other: planner.plan_decode(other, free).peak_bytes)
        return planner.plan_decode(clip, free)

    def by_tiny(other: PixelGrid) -> DecodePlan:
        return plan_tiny_decode(tiny, other.latents(card.z_dim, tiny.scale_t, tiny.scale_s), ITEM_BYTES[planner.dtype])

    room = Room.of(planner, limit_bytes, held_bytes, TINY)
    room.require("decoding", planner, clip, lambda other: by_tiny(other).peak_bytes)
    return by_tiny(clip)


def require_encode(planner: Planner, clip: PixelGrid, limit_bytes: int | None, held_bytes: int) -> int:
    """Bytes that encoding ``clip`` needs beside the weights. Raises MemoryBudgetError, which says what would fit."""

    def need(other: PixelGrid) -> int:
        return encode_bytes(planner.vae, other, ITEM_BYTES[planner.dtype], by_frames=planner.by_frames)

    Room.of(planner, limit_bytes, held_bytes).require("encoding", planner, clip, need)
    return need(clip)


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)

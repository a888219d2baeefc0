"""Decoding and encoding by themselves: what fits in memory, and what to say when nothing does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glimt import memory
from glimt.errors import MemoryBudgetError
from glimt.plan.planner import ITEM_BYTES, Planner
from glimt.plan.vae import DecodePlan, encode_bytes
from glimt.shapes import LatentGrid, PixelGrid


@dataclass(frozen=True)
class Room:
    """Memory for the autoencoder alone: its budget, and what of it its weights take."""

    budget: memory.Budget
    weights_bytes: int

    @classmethod
    def of(cls, planner: Planner, limit_bytes: int | None, held_bytes: int) -> Room:
        """``limit_bytes``: of this call, in place of the configured or the free memory."""
        limit = planner.config.memory_budget_bytes if limit_bytes is None else limit_bytes
        return cls(memory.budget(limit, planner.device, held_bytes), planner.weights_bytes["vae"])

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


def plan_decode(planner: Planner, grid: LatentGrid, limit_bytes: int | None, held_bytes: int) -> DecodePlan:
    """How latents are decoded within the budget. Raises MemoryBudgetError, which says what would fit."""
    card = planner.card
    room = Room.of(planner, limit_bytes, held_bytes)
    free = room.budget.limit_bytes - room.weights_bytes
    clip = grid.pixels(card.scale_factor_temporal, card.scale_factor_spatial)
    room.require("decoding", planner, clip, lambda other: planner.plan_decode(other, free).peak_bytes)
    return planner.plan_decode(clip, free)


def require_encode(planner: Planner, clip: PixelGrid, limit_bytes: int | None, held_bytes: int) -> int:
    """Bytes that encoding ``clip`` needs beside the weights. Raises MemoryBudgetError, which says what would fit."""

    def need(other: PixelGrid) -> int:
        return encode_bytes(planner.vae, other, ITEM_BYTES[planner.dtype], by_frames=planner.by_frames)

    Room.of(planner, limit_bytes, held_bytes).require("encoding", planner, clip, need)
    return need(clip)


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)

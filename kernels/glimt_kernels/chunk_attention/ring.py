"""KvRing: the keys and values of a stream's past, in storage that never grows or moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Tokens ``start`` to ``start + length`` of a cache."""

    start: int
    length: int


@dataclass(frozen=True)
class KvRing:
    """The first ``sink`` tokens of a stream and, in a ring behind them, its last ``window`` ones.

    A value: :meth:`append` gives the state after, and writes into the storage that all states share. A state is good
    until its successor overwrites what it holds; appending twice to one state writes the same places twice, which is
    how the steps of one chunk replace each other's keys.

    Attributes:
        k, v: [B, capacity, heads, head_dim].
        sink: tokens at the beginning of the stream that stay.
        seen: tokens appended so far.
    """

    k: Tensor
    v: Tensor
    sink: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.k.shape != self.v.shape:
            raise ValueError(
                f"KvRing takes k and v [B, capacity, heads, head_dim]; found {list(self.k.shape)}, {list(self.v.shape)}"
            )
        if not 0 <= self.sink < self.capacity:
            raise ValueError(f"sink must be between 0 and the capacity of {self.capacity} tokens; found {self.sink}")

    @classmethod
    def empty(
        cls,
        samples: int,
        capacity: int,
        heads: int,
        head_dim: int,
        *,
        sink: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KvRing:
        """A ring that has seen nothing; its memory is 2 * B * capacity * heads * head_dim elements."""
        k, v = (torch.zeros((samples, capacity, heads, head_dim), dtype=dtype, device=device) for _ in range(2))
        return cls(k, v, sink)

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return self.k.shape[1]

    @property
    def window(self) -> int:
        """Tokens that the ring behind the sink holds."""
        return self.capacity - self.sink

    @property
    def evicted(self) -> int:
        """Tokens overwritten so far: they lay between the sink and the oldest token of the window."""
        return max(0, self.seen - self.capacity)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.seen - self.evicted

    @property
    def position(self) -> int:
        """Where the next token is written."""
        return self.seen if self.seen < self.sink else self.sink + (self.seen - self.sink) % self.window

    def append(self, k: Tensor, v: Tensor) -> KvRing:
        """The state after tokens k, v [B, N, heads, head_dim], which replace the oldest of the window if need be.

        Raises:
            ValueError: shapes do not fit, or more tokens than the window holds.
        """
        places = self._places(k.shape[1]) if k.dim() == 4 else []
        wanted = (self.k.shape[0], sum(place.length for place in places), *self.k.shape[2:])
        if k.shape != v.shape or k.shape != wanted:
            raise ValueError(
                "append takes k and v [B, N, heads, head_dim] as those of the ring, N at most what its window of "
                f"{self.window} tokens holds; found {list(k.shape)}, {list(v.shape)}, the ring has {list(self.k.shape)}"
            )
        done = 0
        with torch.no_grad():
            for start, length in places:
                self.k[:, start : start + length].copy_(k[:, done : done + length])
                self.v[:, start : start + length].copy_(v[:, done : done + length])
                done += length
        return replace(self, seen=self.seen + k.shape[1])

    def _places(self, tokens: int) -> list[Span]:
        """Where the next ``tokens`` go, in order; nothing for more than fit."""
        to_sink = min(tokens, max(0, self.sink - self.seen))
        to_window = tokens - to_sink
        if to_window > self.window:
            return []
        first = self.sink + max(0, self.seen - self.sink) % self.window
        before_end = min(to_window, self.capacity - first)
        spans = Span(self.seen, to_sink), Span(first, before_end), Span(self.sink, to_window - before_end)
        return [span for span in spans if span.length]

    def spans(self) -> tuple[Span, ...]:
        """Where the tokens held are, oldest first, at most three spans; the sink is the first once tokens were evicted.

        While nothing was evicted this is one span.
        """
        if not self.evicted:
            return (Span(0, self.seen),) if self.seen else ()
        oldest = self.position
        spans = Span(0, self.sink), Span(oldest, self.capacity - oldest), Span(self.sink, oldest - self.sink)
        return tuple(span for span in spans if span.length)

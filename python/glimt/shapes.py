"""Sizes as typed values: pixels, latents and tokens of one clip, and the nearest legal sizes.

A causal video VAE keeps the first frame by itself: ``f = 1 + (F - 1) / scale_t``, ``h = H / scale_s`` and
``w = W / scale_s``; the transformer's patches ``(pt, ph, pw)`` then give a token grid ``(f / pt, h / ph, w / pw)``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelGrid:
    """A clip of ``frames`` frames of ``height`` x ``width`` pixels."""

    frames: int
    height: int
    width: int

    def latents(self, channels: int, scale_t: int, scale_s: int) -> LatentGrid:
        """The latent grid of this clip.

        Raises:
            ValueError: the clip is not on the VAE's grid.
        """
        if self.frames < 1 or (self.frames - 1) % scale_t or self.height % scale_s or self.width % scale_s:
            raise ValueError(f"{self} is not on the grid of a VAE with scales {scale_t} in time, {scale_s} in space")
        return LatentGrid(channels, 1 + (self.frames - 1) // scale_t, self.height // scale_s, self.width // scale_s)

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height}"


@dataclass(frozen=True)
class LatentGrid:
    """Latents [B, channels, frames, height, width] of one clip."""

    channels: int
    frames: int
    height: int
    width: int

    def tokens(self, patch: tuple[int, int, int]) -> TokenGrid:
        """The token grid these latents are cut into.

        Raises:
            ValueError: the latents do not divide into whole patches.
        """
        pt, ph, pw = patch
        if self.frames % pt or self.height % ph or self.width % pw:
            raise ValueError(f"latents {self.shape(1)} do not divide into patches of {patch}")
        return TokenGrid(self.frames // pt, self.height // ph, self.width // pw)

    def pixels(self, scale_t: int, scale_s: int) -> PixelGrid:
        """The clip these latents decode to."""
        return PixelGrid(1 + (self.frames - 1) * scale_t, self.height * scale_s, self.width * scale_s)

    def shape(self, batch: int) -> tuple[int, int, int, int, int]:
        """[B, C, f, h, w]."""
        return (batch, self.channels, self.frames, self.height, self.width)


@dataclass(frozen=True)
class TokenGrid:
    """Video tokens in the order t, y, x."""

    t: int
    y: int
    x: int

    @property
    def count(self) -> int:
        """Number of video tokens N."""
        return self.t * self.y * self.x


def round_frames(frames: int, scale_t: int) -> tuple[int, ...]:
    """The legal frame counts ``scale_t * n + 1`` around ``frames``: itself when legal, else the one below and above."""
    below = max((frames - 1) // scale_t, 0) * scale_t + 1
    return (below,) if frames == below or frames < 1 else (below, below + scale_t)


def nearest_sizes(size: int, multiple: int) -> tuple[int, ...]:
    """The legal sizes (positive multiples of ``multiple``) around ``size``: itself when legal, else below and above."""
    below = size // multiple * multiple
    if size == below and size > 0:
        return (size,)
    return (below, below + multiple) if below > 0 else (multiple,)

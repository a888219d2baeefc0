"""The calls of ``glimt_kernels`` that the autoencoder's decoder makes on a GPU, said without making them.

As ``calls.py`` has it for the transformer: what a plan names implementations by; a test holds it to what is observed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from glimt.models.wan.calls import KernelCall, product
from glimt.models.wan.config import WanVaeConfig


class _Decoding:
    """One pass of some latent frames, the first of a clip or later ones."""

    def __init__(self, frames: int, height: int, width: int, dtype: torch.dtype, *, first: bool) -> None:
        self.frames, self.height, self.width, self.dtype, self.first = frames, height, width, dtype, first

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def x(self, channels: int, frames: int | None = None) -> Tensor:
        shape = (1, channels, self.frames if frames is None else frames, self.height, self.width)
        return torch.empty(shape, dtype=self.dtype, device="meta", memory_format=torch.channels_last_3d)

    def norm(self, channels: int, *, silu: bool = True) -> KernelCall:
        rows = self.x(channels).permute(0, 2, 3, 4, 1)
        return KernelCall("rms_norm_silu", (rows, self.empty(channels), None, silu, 1e-12))

    def conv(
        self,
        a: int,
        b: int,
        taps: tuple[int, int, int] = (3, 3, 3),
        *,
        plus: bool = False,
        norm: bool = False,
        keep: bool = True,
        interleave: bool = False,
    ) -> KernelCall:
        past = None if self.first or taps[0] == 1 else self.x(a, taps[0] - 1)
        args = (self.x(a), self.empty(b, a, *taps), self.empty(b), past, self.x(b) if plus else None)
        if norm:
            return KernelCall("causal_conv3d_norm", (*args, self.empty(b), keep))
        return KernelCall("causal_conv3d", (*args, interleave))

    def blocks(self, a: int, b: int, count: int, *, then: bool = False) -> Iterator[KernelCall]:
        """Residual blocks; ``then``: with a norm behind the last one."""
        yield self.norm(a)
        for i, (c, d) in enumerate(pairwise([a] + [b] * count)):
            last = i == count - 1
            yield self.conv(c, d, norm=True, keep=False)
            if c != d:
                yield self.conv(c, d, (1, 1, 1))
            yield self.conv(d, d, plus=True, norm=then or not last, keep=not last)

    def attention(self, width: int) -> Iterator[KernelCall]:
        yield self.norm(width, silu=False)
        rows = self.empty(self.frames, self.height * self.width, width)
        yield product(3 * width, rows)
        yield product(width, rows, residual=rows)

    def upsample(self, a: int, b: int) -> KernelCall:
        return KernelCall("upsample_conv", (self.x(a), self.empty(4 * b, a, 2, 2), self.empty(b)))


def decoder_calls(
    config: WanVaeConfig, frames: int, height: int, width: int, piece: int, dtype: torch.dtype, *, first: bool
) -> Iterator[KernelCall]:
    """Those of ``WanVae.decode_chunk`` for ``frames`` latent frames of ``height`` x ``width``, at most ``piece`` frames
    at a time in the levels that double; what several pieces repeat is there once. ``first``: of a clip, one frame.
    """
    way, mult = _Decoding(frames, height, width, dtype, first=first), config.dim_mult[::-1]
    base, temporal = config.decoder_base_dim or config.base_dim, config.temperal_downsample[::-1]
    dims = [base * m for m in (mult[0], *mult)]
    yield way.conv(config.z_dim, config.z_dim, (1, 1, 1))
    yield way.conv(config.z_dim, dims[0])
    yield from way.blocks(dims[0], dims[0], 1)
    yield from way.attention(dims[0])
    yield from way.blocks(dims[0], dims[0], 1)
    for i, (a, b) in enumerate(pairwise(dims)):
        up = i < len(mult) - 1
        way.frames = min(way.frames, piece)
        yield from way.blocks(a // 2 if i and not config.is_residual else a, b, config.num_res_blocks + 1, then=not up)
        if up and temporal[i] and not first:
            yield way.conv(b, 2 * b, (3, 1, 1), interleave=True)
            way.frames *= 2
        if up:
            yield way.upsample(b, b if config.is_residual else b // 2)
            way.height, way.width = 2 * way.height, 2 * way.width
    yield way.conv(dims[-1], config.out_channels)

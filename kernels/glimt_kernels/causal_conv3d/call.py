"""Shapes and memory of the convolutions' tensors, and what the choice among implementations depends on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glimt_kernels.dispatch import Case

CHANNELS_LAST = torch.channels_last_3d


class Call(NamedTuple):
    """``Case.sizes``: channels out, whether there is nothing to compute, channels in, taps, whether to interleave."""

    n: int = 96
    empty: int = 0
    channels: int = 96
    times: int = 3
    rows: int = 3
    columns: int = 3
    interleave: int = 0


def sizes(x: Tensor, weight: Tensor, *rest: object) -> tuple[int, ...]:
    interleave = rest[3] is True if len(rest) > 3 else False  # in causal_conv3d_norm a tensor stands there
    n, channels, times, rows, columns = weight.shape
    return Call(n, int(not x.numel()), channels, times, rows, columns, int(interleave))


def call_of(case: Case) -> Call:
    return Call(*case.sizes) if case.sizes else Call()


def result_shape(x: Tensor, weight: Tensor, interleave: bool = False) -> tuple[int, int, int, int, int]:
    """Of the convolution of ``x [B, C, F, H, W]``."""
    b, _, f, h, w = x.shape
    turns = 2 if interleave else 1
    return b, weight.shape[0] // turns, f * turns, h, w


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for [B, C, F, H, W] with channels innermost."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=CHANNELS_LAST)


def channels_last(x: Tensor) -> Tensor:
    """``x [B, C, F, H, W]`` with channels innermost in memory."""
    return x.contiguous(memory_format=CHANNELS_LAST)


def frames_dense(x: Tensor) -> Tensor:
    """``x`` itself where each of its frames lies in memory as [H, W, C] without gaps, else a copy of which that holds.

    Frames and samples may be anywhere: those of a part of a clip, or of a ring, are read in place.
    """
    c, h, w = x.shape[1], x.shape[3], x.shape[4]
    wanted = ((c, x.stride(1), 1), (w, x.stride(4), c), (h, x.stride(3), w * c))
    return x if all(size == 1 or found == step for size, found, step in wanted) else channels_last(x)


def assemble(x: Tensor, past: Tensor | None, count: int) -> Tensor:
    """``x`` behind ``count`` frames: zeros, then ``past``. A copy, for libraries that read one tensor only."""
    if not count:
        return channels_last(x)
    b, c, f, h, w = x.shape
    known = 0 if past is None else past.shape[2]
    y = empty((b, c, count + f, h, w), x)
    y[:, :, : count - known] = 0
    if past is not None:
        y[:, :, count - known : count] = past
    y[:, :, count:] = x
    return y


def interleaved(y: Tensor) -> Tensor:
    """``[B, 2 C, F, H, W] -> [B, C, 2 F, H, W]``: the halves of a frame's channels become two frames."""
    b, c, f, h, w = y.shape
    out = empty((b, c // 2, 2 * f, h, w), y)
    out.view(b, c // 2, f, 2, h, w).copy_(y.view(b, 2, c // 2, f, h, w).permute(0, 2, 3, 1, 4, 5))
    return out

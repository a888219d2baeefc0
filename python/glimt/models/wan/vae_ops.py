"""What the blocks of the autoencoder compute, each op in two ways with one meaning.

The plain way is differentiable, runs anywhere, and is that of exact runs. The other is for inference in float32 on a
CPU: tensors [B, C, F, H, W] keep their channels innermost in memory (``channels_last_3d``), as oneDNN's convolutions
and the native norm like them, and nothing is written that need not be:

- convolutions go to oneDNN by name (PyTorch prefers a slow one of its own for short chunks: 188 of 224 in one decode),
  with the residual sum as an epilogue;
- weights are put in the order in which they are read once a clip, not in every call;
- RMS norm and SiLU are one pass, which writes to where the next convolution reads;
- doubling H and W before a 3x3 convolution is folded into it: each of the four pixels that a pixel becomes sees 2x2
  pixels of the small picture, so one 2x2 convolution with four times the channels replaces it: 16 products per small
  pixel instead of 36, the sums of neighbouring weights taken beforehand. Exact algebra;
- the unfolding shortcut is added in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels import Case, fold_upsample, rms_norm_silu
from glimt_kernels.linear.onednn import library, runs_onednn

Triple = tuple[int, int, int]
CHANNELS_LAST = torch.channels_last_3d


def kernels_used(case: Case) -> tuple[str, ...]:
    """The ops of ``glimt_kernels`` that inference calls for ``case``."""
    return ("rms_norm_silu",) if library(case)[0] == "onednn" else ()


def channels_last(x: Tensor) -> Tensor:
    """``x [B, C, F, H, W]`` with channels innermost in memory, where that is the fast way; else as it is."""
    return x.contiguous(memory_format=CHANNELS_LAST) if runs_onednn(x) else x


def goes_by_frames(x: Tensor) -> bool:
    """Whether latent frames ``x [B, C, F, H, W]`` go one by one: in inference on a CPU, which gains nothing by more."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu"


def cuts_kernels(x: Tensor) -> bool:
    """Whether the part of a kernel that would see the zeros before a clip is left out; exact runs keep it."""
    return runs_onednn(x)


def pieces(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """``x [B, C, F, H, W]`` as views of ``count`` frames, the last perhaps of fewer."""
    return tuple(x[:, :, i : i + count] for i in range(0, x.shape[2], count))


def empty_frames(x: Tensor, count: int) -> Tensor:
    """Room for ``count`` frames like those of ``x [B, C, F, H, W]``."""
    b, c, _, h, w = x.shape
    layout = CHANNELS_LAST if runs_onednn(x) else torch.contiguous_format
    return torch.empty((b, c, count, h, w), dtype=x.dtype, device=x.device, memory_format=layout)


def as_frames(flat: Tensor, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """``flat`` as frames of ``shape`` [B, C, F, H, W], laid out as :func:`empty_frames` does for ``x``."""
    b, c, f, h, w = shape
    return flat.view(b, f, h, w, c).permute(0, 4, 1, 2, 3) if runs_onednn(x) else flat.view(shape)


def causal_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, plus: Tensor | None = None
) -> Tensor:
    """Convolution of ``x [B, C, F, H, W]`` after the frames ``past`` (before these: zeros), and ``plus`` added to it.

    Stride 1; ``weight [C_out, C, kt, kh, kw]``: F frames of the same height and width come out.
    """
    kt, kh, kw = weight.shape[2:]
    known = 0 if past is None else past.shape[2]
    x = x if past is None else torch.cat([past, x], dim=2)
    x = F.pad(x, (0, 0, 0, 0, kt - 1 - known, 0)) if known < kt - 1 else x
    return conv3d(x, weight, bias, padding=(0, kh // 2, kw // 2), plus=plus)


def packed(weight: Tensor, x: Tensor, padding: Triple) -> Tensor:
    """``weight`` as the convolution of ``x`` reads it, which saves reordering it in every call."""
    if not runs_onednn(x, weight):
        return weight
    one = (1, 1, 1)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, one, one, 1, list(x.shape))


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Triple = (0, 0, 0),
    stride: Triple = (1, 1, 1),
    plus: Tensor | None = None,
) -> Tensor:
    """Convolution of ``x [B, C, F, H, W]``, and ``plus`` (of the result's shape) added to it."""
    if not runs_onednn(x, weight) or min(x.shape) == 0:
        out = F.conv3d(x, weight, bias, stride, padding)
        return out if plus is None else out + plus
    x, dilation, conv = channels_last(x), (1, 1, 1), torch.ops.mkldnn._convolution_pointwise
    if plus is None:
        return conv(x, weight, bias, padding, stride, dilation, 1, "none", [], "")
    plus = channels_last(plus)
    return conv.binary(x, plus, weight, bias, padding, stride, dilation, 1, "add", None, None, [], None)


def norm_silu(x: Tensor, gamma: Tensor, *, silu: bool = True, out: Tensor | None = None) -> Tensor:
    """``y = gamma sqrt(C) x / max(||x||_2, 1e-12)`` over the channel axis 1 in float32, then ``y sigmoid(y)``.

    In ``out``, of the shape of ``x``, where it is given.
    """
    if runs_onednn(x, gamma) and x.ndim == 5:
        rows, room = channels_last(x).permute(0, 2, 3, 4, 1), None if out is None else out.permute(0, 2, 3, 4, 1)
        if room is None or room.is_contiguous():
            y = rms_norm_silu(rows, gamma.flatten(), silu=silu, out=room)
            return y.permute(0, 4, 1, 2, 3)
    if out is not None:
        return out.copy_(norm_silu(x, gamma, silu=silu))
    square = x.float().square().sum(dim=1, keepdim=True).clamp_min(1e-24)
    gamma = gamma.reshape(-1, *[1] * (x.ndim - 2)).to(x.dtype)
    y = x * (square.rsqrt() * x.shape[1] ** 0.5).to(x.dtype) * gamma
    return F.silu(y) if silu else y


def downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every frame of ``x [B, C, F, H, W]`` convolved with ``weight [C_out, C, 3, 3]`` at every second pixel.

    Zeros lie behind the last row and column.
    """
    b, c, f, h, w = x.shape
    if not runs_onednn(x, weight) or min(x.shape) == 0:
        frames = F.pad(x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w), (0, 1, 0, 1))
        y = F.conv2d(frames, weight, bias, stride=2)
        return y.view(b, f, *y.shape[1:]).permute(0, 2, 1, 3, 4)
    padded = torch.zeros((b, c, f, h + 1, w + 1), dtype=x.dtype).contiguous(memory_format=CHANNELS_LAST)
    padded[:, :, :, :h, :w] = x
    return conv3d(padded, weight[:, :, None], bias, stride=(1, 2, 2))


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Double H and W of ``x [B, C, F, H, W]`` (nearest), then convolve every frame with ``weight [C_out, C, 3, 3]``."""
    b, c, f, h, w = x.shape
    frames = x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w)
    y = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
    return y.view(b, f, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def folds_upsample(x: Tensor, weight: Tensor) -> bool:
    """Whether :class:`FoldedConv` computes what :func:`upsample_conv` does, and faster."""
    return runs_onednn(x, weight) and min(x.shape) > 0


class FoldedConv(NamedTuple):
    """:func:`upsample_conv` as four convolutions of the small picture, their weights made once."""

    weight: Tensor
    bias: Tensor | None
    channels: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, x: Tensor) -> FoldedConv:
        """For pictures like those of ``x [B, C, F, H, W]``."""
        folded = packed(fold_upsample(weight)[:, :, None], x[:, :, :1], (0, 1, 1))
        return cls(folded, None if bias is None else bias.repeat(4), weight.shape[0])

    def __call__(self, x: Tensor) -> Tensor:
        b, _, f, h, w = x.shape
        out = self.channels
        y = x.new_empty(b, f, h, 2, w, 2, out)
        for index, frame in enumerate(pieces(x, 1)):
            # One more row and column than the picture has: the corner between four pixels is seen by a phase of each.
            corners = conv3d(frame, self.weight, self.bias, padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)[:, 0]
            for py in (0, 1):
                for px in (0, 1):
                    first = (2 * py + px) * out
                    y[:, index, :, py, :, px] = corners[:, py : py + h, px : px + w, first : first + out]
        return y.view(b, f, 2 * h, 2 * w, out).permute(0, 4, 1, 2, 3)


def interleave_frames(x: Tensor) -> Tensor:
    """``[B, 2 C, F, H, W] -> [B, C, 2 F, H, W]``: the halves of a frame's channels become two frames."""
    b, c, f, h, w = x.shape
    pairs = x.view(b, 2, c // 2, f, h, w)
    if not runs_onednn(x):
        return pairs.permute(0, 2, 3, 1, 4, 5).reshape(b, c // 2, 2 * f, h, w)
    y = x.new_empty(b, f, 2, h, w, c // 2)
    y.copy_(pairs.permute(0, 3, 1, 4, 5, 2))
    return y.view(b, 2 * f, h, w, c // 2).permute(0, 4, 1, 2, 3)


def add_unfolded(y: Tensor, x: Tensor, factor_t: int, *, first: bool) -> Tensor:
    """``y`` plus ``x [B, C, F, H, W]`` unfolded: channels repeated, then spread over ``factor_t`` frames, 2x2 pixels.

    ``y [B, C', F', 2 H, 2 W]``; with ``first`` the ``factor_t - 1`` leading frames of the unfolded clip fall away.
    ``y`` may be written to.
    """
    b, c, f, h, w = x.shape
    out, t = y.shape[1], factor_t
    repeats = out * t * 4 // c
    if not runs_onednn(y):
        x = x.repeat_interleave(repeats, dim=1).reshape(b, out, t, 2, 2, f, h, w)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, out, f * t, 2 * h, 2 * w)
        return y + (x[:, :, t - 1 :] if first else x)
    rows, y = channels_last(x).permute(0, 2, 3, 4, 1), channels_last(y)
    target = y.permute(0, 2, 3, 4, 1).view(b, -1, h, 2, w, 2, out)
    lost = t - 1 if first else 0
    for phase in range(4 * t):
        ti, i, j = phase // 4, phase // 2 % 2, phase % 2
        source = torch.arange(phase, 4 * t * out, 4 * t) // repeats  # the channel that each channel of y repeats
        begin = (ti - lost) % t
        part = rows[:, 1:] if ti < lost else rows
        if part.shape[1]:
            target[:, begin::t, :, i, :, j] += part if repeats == 4 * t else part[..., source]
    return y

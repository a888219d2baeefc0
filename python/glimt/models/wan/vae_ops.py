"""What the blocks of the autoencoder compute, each op with one meaning and up to three ways.

- *PyTorch's own operations*: differentiable, run anywhere; the way of training, of exact runs and of exported graphs.
- *On a CPU*, inference in float32: tensors [B, C, F, H, W] keep their channels innermost in memory
  (``channels_last_3d``), as oneDNN's convolutions and the native norm like them. Convolutions go to oneDNN by name,
  with the residual sum as an epilogue and weights that are put in the order in which they are read once a clip, not in
  every call; RMS norm and SiLU are one pass, which writes to where the next convolution reads.
- *On a GPU* (and on meta tensors, where that is counted), inference: the ops of ``glimt_kernels``, channels innermost
  too. A convolution reads the frames before its chunk where they lie, adds bias and residual, and norms what it gives
  for the next one; doubling time is written straight into frames.

In both of the latter, doubling H and W is folded into the convolution behind it: each of the four pixels that a pixel
becomes sees 2x2 pixels of the small picture, 16 products instead of 36. Exact algebra.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import glimt_kernels as kernels
from glimt.models.linear import fuses
from glimt_kernels.causal_conv3d.call import interleaved
from glimt_kernels.causal_conv3d.libraries import Triple, convolve
from glimt_kernels.causal_conv3d.libraries import packed as _packed
from glimt_kernels.linear.onednn import library, runs_onednn

CHANNELS_LAST = torch.channels_last_3d


def kernels_used(case: kernels.Case, *, vae: bool = True) -> tuple[str, ...]:
    """The ops of ``glimt_kernels`` that decoding calls for ``case`` at sizes of many kinds, in inference.

    ``vae``: by the autoencoder, not by a tiny decoder alone. What else it calls on a GPU: ``vae_calls``.
    """
    if kernels.wants_references() or (case.device == "cpu" and library(case)[0] != "onednn"):
        return ()
    return ("rms_norm_silu", "upsample_conv") if vae else ("upsample_conv",)


def by_kernels(x: Tensor) -> bool:
    """Whether the ops of ``glimt_kernels`` run the layers: in inference on a GPU, and on meta tensors."""
    return x.device.type in ("cuda", "meta") and not torch.compiler.is_compiling() and fuses(x)


def keeps_innermost(*tensors: Tensor) -> bool:
    """Whether channels are innermost in memory: where oneDNN or the kernels run."""
    return by_kernels(tensors[0]) or runs_onednn(*tensors)


def channels_last(x: Tensor) -> Tensor:
    """``x [B, C, F, H, W]`` with channels innermost in memory, where that is the fast way; else as it is."""
    return x.contiguous(memory_format=CHANNELS_LAST) if keeps_innermost(x) else x


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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None = None,
    *,
    interleave: bool = False,
) -> Tensor:
    """Convolution of ``x [B, C, F, H, W]`` after the frames ``past`` (before these: zeros), and ``plus`` added to it.

    Stride 1; ``weight [C_out, C, kt, kh, kw]``: F frames of the same height and width come out, or with ``interleave``
    (and no ``plus``) 2 F, the halves of each one's channels.
    """
    if by_kernels(x):
        return kernels.causal_conv3d(x, weight, bias, past, plus, interleave=interleave)
    kt, kh, kw = weight.shape[2:]
    known = 0 if past is None else past.shape[2]
    x = x if past is None else torch.cat([past, x], dim=2)
    x = F.pad(x, (0, 0, 0, 0, kt - 1 - known, 0)) if known < kt - 1 else x
    y = conv3d(x, weight, bias, padding=(0, kh // 2, kw // 2), plus=plus)
    return interleaved(y) if interleave else y


def packed(weight: Tensor, x: Tensor, padding: Triple) -> Tensor:
    """``weight`` as the convolution of ``x`` reads it, which saves reordering it in every call."""
    return _packed(weight, x, padding) if runs_onednn(x, weight) else weight


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
    return convolve(channels_last(x), weight, bias, padding, plus, stride)


def norm_silu(x: Tensor, gamma: Tensor, *, silu: bool = True, out: Tensor | None = None) -> Tensor:
    """``y = gamma sqrt(C) x / max(||x||_2, 1e-12)`` over the channel axis 1 in float32, then ``y sigmoid(y)``.

    In ``out``, of the shape of ``x``, where it is given.
    """
    if keeps_innermost(x, gamma) and x.ndim == 5:
        rows, room = channels_last(x).permute(0, 2, 3, 4, 1), None if out is None else out.permute(0, 2, 3, 4, 1)
        if room is None or room.is_contiguous():
            y = kernels.rms_norm_silu(rows, gamma.flatten(), silu=silu, out=room)
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


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, folded: Callable[[], Tensor] | None = None) -> Tensor:
    """Double H and W of ``x [B, C, F, H, W]`` (nearest), then convolve every frame with ``weight [C_out, C, 3, 3]``.

    ``folded``: gives ``fold_upsample(weight)``, where a caller keeps that.
    """
    if keeps_innermost(x, weight):
        return kernels.upsample_conv(x, kernels.fold_upsample(weight) if folded is None else folded(), bias)
    b, c, f, h, w = x.shape
    frames = x.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w)
    y = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
    return y.view(b, f, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def add_unfolded(y: Tensor, x: Tensor, factor_t: int, *, first: bool) -> Tensor:
    """``y`` plus ``x [B, C, F, H, W]`` unfolded: channels repeated, then spread over ``factor_t`` frames, 2x2 pixels.

    ``y [B, C', F', 2 H, 2 W]``; with ``first`` the ``factor_t - 1`` leading frames of the unfolded clip fall away.
    ``y`` may be written to.
    """
    b, c, f, h, w = x.shape
    out, t = y.shape[1], factor_t
    repeats = out * t * 4 // c
    if not keeps_innermost(y):
        x = x.repeat_interleave(repeats, dim=1).reshape(b, out, t, 2, 2, f, h, w)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, out, f * t, 2 * h, 2 * w)
        return y + (x[:, :, t - 1 :] if first else x)
    rows, y = channels_last(x).permute(0, 2, 3, 4, 1), channels_last(y)
    target = y.permute(0, 2, 3, 4, 1).view(b, -1, h, 2, w, 2, out)
    lost = t - 1 if first else 0
    for phase in range(4 * t):
        ti, i, j = phase // 4, phase // 2 % 2, phase % 2
        # The channel that each channel of y repeats.
        source = torch.arange(phase, 4 * t * out, 4 * t, device=x.device) // repeats
        begin = (ti - lost) % t
        part = rows[:, 1:] if ti < lost else rows
        if part.shape[1]:
            target[:, begin::t, :, i, :, j] += part if repeats == 4 * t else part[..., source]
    return y

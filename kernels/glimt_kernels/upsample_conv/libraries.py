"""upsample_conv by a library: all four pixels of a pixel as one convolution, then each moved to its place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.causal_conv3d.call import channels_last, empty
from glimt_kernels.causal_conv3d.libraries import convolve, packed


def onednn(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    """A frame at a time: it is moved while it is in a cache, and memory is that of one frame's corners."""
    (b, _, f, h, w), padding, offset = x.shape, (0, 1, 1), _four_times(bias)
    x, y = channels_last(x), empty((b, folded.shape[0] // 4, f, 2 * h, 2 * w), x)
    weight = packed(folded[:, :, None], x[:, :, :1], padding)
    for index in range(f):
        frame = slice(index, index + 1)
        _place(convolve(channels_last(x[:, :, frame]), weight, offset, padding), y[:, :, frame])
    return y


def aten(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    (b, _, f, h, w), n = x.shape, folded.shape[0] // 4
    corners = F.conv3d(channels_last(x), channels_last(folded[:, :, None]), _four_times(bias), padding=(0, 1, 1))
    return _place(corners, empty((b, n, f, 2 * h, 2 * w), x))


def _four_times(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.repeat(4)


def _place(corners: Tensor, y: Tensor) -> Tensor:
    """``corners [B, 4 N, F, H + 1, W + 1]`` in ``y``: the corner between four pixels is seen by a phase of each."""
    n, h, w = y.shape[1], y.shape[3] // 2, y.shape[4] // 2
    for py in (0, 1):
        for px in (0, 1):
            first = (2 * py + px) * n
            y[..., py::2, px::2] = corners[:, first : first + n, :, py : py + h, px : px + w]
    return y

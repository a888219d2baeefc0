"""upsample_conv by a library: all four pixels of a pixel as one convolution, then each moved to its place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.causal_conv3d.call import channels_last, empty
from glimt_kernels.causal_conv3d.libraries import convolve


def onednn(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    corners = convolve(channels_last(x), folded[:, :, None], _four_times(bias), (0, 1, 1))
    return _placed(corners, x)


def aten(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    corners = F.conv3d(channels_last(x), channels_last(folded[:, :, None]), _four_times(bias), padding=(0, 1, 1))
    return _placed(corners, x)


def _four_times(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.repeat(4)


def _placed(corners: Tensor, x: Tensor) -> Tensor:
    """``corners [B, 4 N, F, H + 1, W + 1]``: the corner between four pixels is seen by a phase of each of them."""
    (b, _, f, h, w), n = x.shape, corners.shape[1] // 4
    y = empty((b, n, f, 2 * h, 2 * w), x)
    for py in (0, 1):
        for px in (0, 1):
            first = (2 * py + px) * n
            y[..., py::2, px::2] = corners[:, first : first + n, :, py : py + h, px : px + w]
    return y

"""upsample_conv in Triton: the kernel of ../causal_conv3d, whose four groups of output channels are four pixels.

Each group has 2x2 taps of its own, which begin a row above or not, a column to the left or not, and writes straight to
its quarter of the doubled picture. The programs of the four follow each other, so that x is read from memory once.

Bytes: x, folded and the output once; an upsampled picture is nowhere. Launch shapes in ``../causal_conv3d/tiles.py``.
"""

from __future__ import annotations

from torch import Tensor

from glimt_kernels.causal_conv3d import tiles
from glimt_kernels.causal_conv3d.call import empty
from glimt_kernels.causal_conv3d.tiles import Layer
from glimt_kernels.causal_conv3d.triton import convolve, run


def upsample_conv(x: Tensor, folded: Tensor, bias: Tensor | None = None, *, arch: int | None = None) -> Tensor:
    """``arch``: the chip, if not that of ``x``; for tests."""
    b, _, f, h, w = x.shape
    out = empty((b, folded.shape[0] // 4, f, 2 * h, 2 * w), x)
    if out.numel():
        run(x, folded[:, :, None], bias, out, place="pixels", arch=arch)
    return out


BUILDS = [
    build
    for channels in (384, 192)  # Wan 2.1
    for build in tiles.builds(
        convolve,
        "upsample_conv",
        f"{channels} to {channels // 2}",
        Layer(channels, channels // 2, (1, 2, 2), "pixels"),
    )
]

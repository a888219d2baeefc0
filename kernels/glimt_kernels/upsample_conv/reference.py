"""What upsample_conv means: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.causal_conv3d.call import channels_last


def upsample_conv(x: Tensor, folded: Tensor, bias: Tensor | None = None) -> Tensor:
    wide, weight, offset = (t if t is None or t.dtype == torch.float64 else t.float() for t in (x, folded, bias))
    assert wide is not None and weight is not None
    phases = [
        F.conv3d(F.pad(wide, (1 - px, px, 1 - py, py)), weight.chunk(4)[2 * py + px][:, :, None], offset)
        for py in (0, 1)
        for px in (0, 1)
    ]
    b, n, f, h, w = phases[0].shape
    y = torch.stack(phases, dim=-1).view(b, n, f, h, w, 2, 2).permute(0, 1, 2, 3, 5, 4, 6)
    return channels_last(y.reshape(b, n, f, 2 * h, 2 * w).to(x.dtype))

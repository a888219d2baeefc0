"""What causal_conv3d and causal_conv3d_norm mean: obvious PyTorch, any floating dtype, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.causal_conv3d.call import channels_last
from glimt_kernels.rms_norm_silu import reference as rms_norm_silu


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
) -> Tensor:
    times, rows, columns = weight.shape[2:]
    known = 0 if past is None else past.shape[2]
    frames = F.pad(x if past is None else torch.cat([past, x], dim=2), (0, 0, 0, 0, times - 1 - known, 0))
    wide_bias = None if bias is None else _widen(bias)
    y = F.conv3d(_widen(frames), _widen(weight), wide_bias, padding=(0, rows // 2, columns // 2))
    if interleave:
        y = torch.stack(y.chunk(2, dim=1), dim=3).flatten(2, 3)
    return channels_last((y if plus is None else y + plus).to(x.dtype))


def causal_conv3d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = causal_conv3d(x, weight, bias, past, plus)
    rows = rms_norm_silu.rms_norm_silu(y.permute(0, 2, 3, 4, 1), gamma, None, True, 1e-12)
    normed = channels_last(rows.permute(0, 4, 1, 2, 3))
    return normed, y if keep else y.flatten()[:0].clone()

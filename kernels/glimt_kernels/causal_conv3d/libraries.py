"""The convolutions by a library, on ``x`` and the frames before it put together.

"onednn" is called by name on a CPU in float32: PyTorch prefers a slow convolution of its own for short chunks (188 of
224 in one decode), and the residual sum rides along as an epilogue. "aten" is PyTorch's choice: cuDNN on CUDA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.causal_conv3d.call import assemble, call_of, channels_last, interleaved
from glimt_kernels.dispatch import Case
from glimt_kernels.linear.onednn import library

Triple = tuple[int, int, int]


def aten(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
) -> Tensor:
    times, rows, columns = weight.shape[2:]
    y = F.conv3d(assemble(x, past, times - 1), channels_last(weight), bias, padding=(0, rows // 2, columns // 2))
    y = interleaved(y) if interleave else channels_last(y)
    return y if plus is None else y.add_(plus)


def onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
) -> Tensor:
    times, rows, columns = weight.shape[2:]
    y = convolve(assemble(x, past, times - 1), weight, bias, (0, rows // 2, columns // 2), None if interleave else plus)
    if not interleave:
        return y
    y = interleaved(y)
    return y if plus is None else y.add_(plus)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Triple,
    plus: Tensor | None = None,
    stride: Triple = (1, 1, 1),
) -> Tensor:
    """By oneDNN, and ``plus`` (of the result's shape) added to it. ``x`` has its channels innermost.

    ``weight``: as it is, or :func:`packed`.
    """
    conv, ones = torch.ops.mkldnn._convolution_pointwise, (1, 1, 1)
    y: Tensor
    if plus is None:
        y = conv(x, weight, bias, padding, stride, ones, 1, "none", [], "")
    else:
        y = conv.binary(x, channels_last(plus), weight, bias, padding, stride, ones, 1, "add", None, None, [], None)
    return channels_last(y)


def packed(weight: Tensor, x: Tensor, padding: Triple) -> Tensor:
    """``weight`` in the order in which oneDNN's convolution of ``x`` reads it: for many calls on such shapes."""
    ones = (1, 1, 1)
    out: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, ones, ones, 1, list(x.shape))
    return out


def onednn_reasons(case: Case) -> list[str]:
    """Why oneDNN cannot run a convolution."""
    found = []
    if case.device != "cpu":
        found.append(f"it is called on the CPU, the tensors are on {case.device}")
    if case.dtype != torch.float32:
        found.append(f"it is called for float32, the tensors are {str(case.dtype).removeprefix('torch.')}")
    if call_of(case).empty:
        found.append("it takes no empty tensors")
    return found or list(library(case)[1])


def aten_reasons(case: Case) -> list[str]:
    """Why PyTorch's choice is none."""
    found = []
    if case.device not in ("cpu", "cuda"):
        found.append(f"PyTorch's libraries are called on a CPU and on CUDA, the tensors are on {case.device}")
    if case.dtype == torch.float64:
        found.append("in float64 the reference is the same convolution")
    return found

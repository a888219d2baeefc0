"""causal_conv3d: a chunk of four frames behind two earlier ones, at the widths and sizes of Wan's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload
from glimt_kernels.linear.onednn import has_onednn

CHUNK, PAST = 4, 2
LINES = 8  # checked against float64: all of a picture would take minutes
CL = torch.channels_last_3d


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """The last residual blocks, at full size."""
    return _workload(name, shape, 1, dtype, device)


def half(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """Half the size, twice the channels."""
    return _workload(name, shape, 2, dtype, device)


def quarter(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _workload(name, shape, 4, dtype, device)


def eager(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, plus: Tensor, interleave: bool = False) -> Tensor:
    """As Diffusers' ``WanCausalConv3d`` and the sum of its residual block."""
    return F.conv3d(torch.cat([past, x], dim=2), weight, bias, padding=(0, 1, 1)) + plus


def honest(args: Sequence[Tensor]) -> Callable[..., Tensor]:
    """On a CPU in float32 the further from exact of the two libraries that PyTorch chooses between by size: one sums in
    blocks, the other product after product, and either may have a third of the other's error."""
    x, weight, bias, past, plus = args
    if x.device.type != "cpu" or x.dtype != torch.float32 or not has_onednn():
        return eager
    frames, one, exact = torch.cat([past, x], dim=2), (1, 1, 1), exact_lines(args)
    found = [
        eager(x, weight, bias, past, plus),
        torch.mkldnn_convolution(frames, weight, bias, (0, 1, 1), one, one, 1) + plus,
    ]
    worse = max(found, key=lambda y: float((y[..., :LINES, :] - exact).norm()))
    return lambda *_: worse


def tensors(
    shape: Shape, factor: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, past, plus, channels innermost; a tiny clip has the channels of a small autoencoder."""
    _, height, width = (max(1, side // factor) for side in shape.clip)
    channels = (96 if shape.clip[1] >= 256 else 16) * factor

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device).to(dtype).contiguous(memory_format=CL)

    weight = random(channels, channels, 3, 3, 3) / (27 * channels) ** 0.5
    x, past, plus = (random(1, channels, frames, height, width) for frames in (CHUNK, PAST, CHUNK))
    return x, weight, torch.randn(channels, device=device).to(dtype), past, plus


def exact_lines(args: Sequence[Tensor]) -> Tensor:
    """The first lines, from the lines that they see."""
    x, weight, bias, past, plus = (t.double() if t.dim() == 1 else t[..., : LINES + 1, :].double() for t in args)
    return eager(x, weight, bias, past, plus)[..., :LINES, :]


def part(results: Sequence[Tensor]) -> Sequence[Tensor]:
    return [result[..., :LINES, :] for result in results]


def work(args: Sequence[Tensor]) -> tuple[float, float]:
    """(FLOPs, bytes) of a convolution."""
    x, weight, _, past, plus = args
    return 2 * plus.numel() * weight[0].numel(), x.nbytes + weight.nbytes + past.nbytes + 2 * plus.nbytes


def _workload(name: str, shape: Shape, factor: int, dtype: torch.dtype, device: torch.device) -> Workload:
    args = tensors(shape, factor, dtype, device)
    flops, num_bytes = work(args)
    return Workload(
        op="causal_conv3d",
        shape=name,
        args=(*args, False),
        eager=eager,
        flops=flops,
        num_bytes=num_bytes,
        exact=lambda: [exact_lines(args)],
        honest=honest(args),
        part=part,
        kind="matrix",
    )

"""frames_to_uint8: decoded pixels to the bytes of a video's frames."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, define
from glimt_kernels.frames_to_uint8 import native, reference


def frames_to_uint8(pixels: Tensor, *, impl: str | None = None) -> Tensor:
    """``round(255 * clamp(x / 2 + 1 / 2, 0, 1))``, halves to even, in float32: [B, 3, F, H, W] -> [B, F, H, W, 3].

    Bit for bit what Diffusers' ``VideoProcessor.postprocess_video`` followed by ``(images * 255).round()`` gives. The
    operation is exact: every implementation gives the same bytes. A NaN becomes 0.

    Args:
        pixels: [B, 3, F, H, W] floating, nominally in [-1, 1], any strides.
        impl: "native", "cuda" or "reference" instead of the chosen implementation.

    Returns:
        [B, F, H, W, 3] uint8, contiguous, on the device of ``pixels``.

    Raises:
        ValueError: not [B, 3, F, H, W].
        UnsupportedError: ``impl`` cannot run this call.
    """
    if pixels.dim() != 5 or pixels.shape[1] != 3:
        raise ValueError(f"frames_to_uint8 takes pixels [B, 3, F, H, W]; found {list(pixels.shape)}")
    result: Tensor = OP(pixels.detach(), impl=impl)
    return result


def _fake(pixels: Tensor) -> Tensor:
    b, c, f, h, w = pixels.shape
    return torch.empty((b, f, h, w, c), dtype=torch.uint8, device=pixels.device)


OP = define(
    "frames_to_uint8",
    "(Tensor pixels) -> Tensor",
    [
        Candidate("frames_to_uint8", "native", native.frames_to_uint8, native.reasons),
        Candidate("frames_to_uint8", "cuda", native.frames_to_uint8_cuda, native.cuda_reasons),
        Candidate("frames_to_uint8", "reference", reference.frames_to_uint8),
    ],
    _fake,
    differentiable=False,
)

"""frames_to_uint8, frames_to_nv12, frames_to_yuv420: decoded pixels to the bytes of a video's frames, for viewers and
for encoders."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, define
from glimt_kernels.frames_to_uint8 import native, reference, triton
from glimt_kernels.triton_env import reluctance, triton_reasons


def frames_to_uint8(pixels: Tensor, *, out: Tensor | None = None, impl: str | None = None) -> Tensor:
    """``round(255 * clamp(x / 2 + 1 / 2, 0, 1))``, halves to even, in float32: [B, 3, F, H, W] -> [B, F, H, W, 3].

    Bit for bit what Diffusers' ``VideoProcessor.postprocess_video`` followed by ``(images * 255).round()`` gives. The
    operation is exact: every implementation gives the same bytes. A NaN becomes 0.

    Args:
        pixels: [B, 3, F, H, W] floating, nominally in [-1, 1], any strides.
        out: like the result, any strides; written and returned instead of a new tensor.
        impl: "native", "triton", "cuda" or "reference" instead of the chosen implementation.

    Returns:
        [B, F, H, W, 3] uint8, contiguous, on the device of ``pixels``.

    Raises:
        ValueError: not [B, 3, F, H, W].
        UnsupportedError: ``impl`` cannot run this call.
    """
    if pixels.dim() != 5 or pixels.shape[1] != 3:
        raise ValueError(f"frames_to_uint8 takes pixels [B, 3, F, H, W]; found {list(pixels.shape)}")
    values = pixels.detach()
    result: Tensor = OP(values, impl=impl) if out is None else OP.into(out, values, impl=impl)
    return result


def frames_to_nv12(pixels: Tensor, *, out: Tensor | None = None, impl: str | None = None) -> Tensor:
    """Frames in NV12, BT.709, limited range: what hardware encoders take.

    With R, G, B = clamp(x / 2 + 1 / 2, 0, 1), not rounded (a NaN becomes 0):

        Y = 16 + 219 y            y = 0.2126 R + 0.7152 G + 0.0722 B
        Cb = 128 + 224 cb         cb = mean over 2 x 2 pixels of (B - y) / 1.8556
        Cr = 128 + 224 cr         cr = mean over 2 x 2 pixels of (R - y) / 1.5748

    each rounded once to the nearest. Computed in float32: where the exact value is within 1e-4 of the middle between
    two levels, it may be either. The mean over 2 x 2 pixels puts the chroma in their centre: tell the encoder
    ``chroma_sample_location=center``, with ``color_range=tv`` and ``bt709`` for matrix, primaries and transfer.

    Args:
        pixels: [B, 3, F, H, W] floating, nominally in [-1, 1], any strides; H and W even.
        out: like the result, any strides; written and returned instead of a new tensor.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        [B, F, 3 H / 2, W] uint8, contiguous, on the device of ``pixels``: H lines of Y, then H / 2 lines of Cb and Cr
        in turn.

    Raises:
        ValueError: not [B, 3, F, H, W], or H or W is odd.
        UnsupportedError: ``impl`` cannot run this call.

    Source: Recommendation ITU-R BT.709-6, sections 3 and 4.
    """
    return _encoded("frames_to_nv12", pixels, False, out, impl)


def frames_to_yuv420(pixels: Tensor, *, out: Tensor | None = None, impl: str | None = None) -> Tensor:
    """Frames in planar YUV 4:2:0 (I420, ``yuv420p``), BT.709, limited range: what software encoders take.

    The bytes of :func:`frames_to_nv12`, with H / 2 W / 2 of Cb and as many of Cr, one plane after the other, behind
    those of Y.

    Args:
        pixels: [B, 3, F, H, W] floating, nominally in [-1, 1], any strides; H and W even.
        out: like the result, any strides; written and returned instead of a new tensor.
        impl: "triton" or "reference" instead of the chosen implementation (of the op frames_to_nv12).

    Returns:
        [B, F, 3 H / 2, W] uint8, contiguous, on the device of ``pixels``: a plane of chroma is H / 4 lines of it, each
        of which holds two.

    Raises:
        ValueError: not [B, 3, F, H, W], or H or W is odd.
        UnsupportedError: ``impl`` cannot run this call.
    """
    return _encoded("frames_to_yuv420", pixels, True, out, impl)


def _encoded(name: str, pixels: Tensor, planar: bool, out: Tensor | None, impl: str | None) -> Tensor:
    if pixels.dim() != 5 or pixels.shape[1] != 3:
        raise ValueError(f"{name} takes pixels [B, 3, F, H, W]; found {list(pixels.shape)}")
    h, w = pixels.shape[3:]
    if h % 2 or w % 2:
        raise ValueError(
            f"{name} takes an even height and width, for 2 x 2 pixels share their chroma; found {h} x {w}, "
            f"cut it to {h - h % 2} x {w - w % 2}"
        )
    args = (pixels.detach(), planar)
    result: Tensor = NV12(*args, impl=impl) if out is None else NV12.into(out, *args, impl=impl)
    return result


def _fake(pixels: Tensor) -> Tensor:
    b, c, f, h, w = pixels.shape
    return torch.empty((b, f, h, w, c), dtype=torch.uint8, device=pixels.device)


def _fake_nv12(pixels: Tensor, planar: bool = False) -> Tensor:
    b, _, f, h, w = pixels.shape
    return torch.empty((b, f, h // 2 * 3, w), dtype=torch.uint8, device=pixels.device)


OP = define(
    "frames_to_uint8",
    "(Tensor pixels) -> Tensor",
    [
        Candidate("frames_to_uint8", "native", native.frames_to_uint8, native.reasons),
        Candidate("frames_to_uint8", "triton", triton.frames_to_uint8, triton_reasons, reluctance),
        Candidate("frames_to_uint8", "cuda", native.frames_to_uint8_cuda, native.cuda_reasons),
        Candidate("frames_to_uint8", "reference", reference.frames_to_uint8),
    ],
    _fake,
    differentiable=False,
)
NV12 = define(
    "frames_to_nv12",
    "(Tensor pixels, bool planar=False) -> Tensor",
    [
        Candidate("frames_to_nv12", "triton", triton.frames_to_nv12, triton_reasons, reluctance),
        Candidate("frames_to_nv12", "reference", reference.frames_to_nv12),
    ],
    _fake_nv12,
    differentiable=False,
)

"""causal_conv3d on CUDA, bfloat16, kernel 3x3x3 (ampere.h, hopper.h): arguments and launch."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.causal_conv3d.call import CHANNELS_LAST, call_of, channels_last, empty
from glimt_kernels.dispatch import Case
from glimt_kernels.native import ABSENT, lib

# What csrc/bind_conv.cpp takes: batch, frames, frames of history, height, width, channels in, channels out; then the
# elements from sample to sample and from frame to frame of x, of the history and of what is added.
Sizes = tuple[int, ...]


def absent() -> str | None:
    """Why this build has no such kernels, or None."""
    if ABSENT:
        return ABSENT
    if not lib.cuda_archs():
        return "built without CUDA (no nvcc was found, or GLIMT_CUDA=OFF)"
    if not lib.causal_conv3d_archs():
        return "built without CUTLASS: pip install --no-deps nvidia-cutlass, and build glimt again"
    return None


def reasons(case: Case) -> list[str]:
    """Why it cannot run a convolution."""
    return _reasons(case, norm=False)


def norm_reasons(case: Case) -> list[str]:
    """Why it cannot run one with the norm that follows."""
    return _reasons(case, norm=True)


def _reasons(case: Case, *, norm: bool) -> list[str]:
    found = [why] if (why := absent()) else []
    if case.device != "cuda":
        found.append(f"it runs on CUDA, the tensors are on {case.device}")
    if case.dtype != torch.bfloat16:
        dtype = "of several dtypes" if case.dtype is None else str(case.dtype).removeprefix("torch.")
        found.append(f"it multiplies bfloat16, the tensors are {dtype}")
    if 0 < case.arch < 80:
        found.append(f"it needs sm_80, this is sm_{case.arch}")
    call = call_of(case)
    if (call.times, call.rows, call.columns) != (3, 3, 3):
        found.append(f"its taps are 3x3x3, not {call.times}x{call.rows}x{call.columns}")
    if call.interleave:
        found.append("it does not interleave frames")
    one_pixel = (1, 1, 0, 1, 1, call.channels, call.n, 0, 0, 0, 0, 0, 0)
    if ABSENT is None and (why := lib.causal_conv3d_refusal(one_pixel, norm)):
        found.append(f"{why}; here {call.channels} become {call.n}")
    return found


def steps(x: Tensor) -> tuple[int, int]:
    """Elements from sample to sample and from frame to frame of [B, C, F, H, W]; an axis of 1 has the step it would."""
    b, c, f, h, w = x.shape
    frame = x.stride(2) if f > 1 else c * h * w
    return x.stride(0) if b > 1 else f * frame, frame


def innermost(x: Tensor) -> Tensor:
    """``x`` [B, C, F, H, W] with whole frames of pixels of channels in memory; copied only where it has not.

    Frames and samples may be any multiple of 16 bytes apart, so that a slice of a ring of frames is taken as it is.
    """
    _, c, _, h, w = x.shape
    together = all(size == 1 or x.stride(axis) == step for axis, size, step in ((1, c, 1), (3, h, w * c), (4, w, c)))
    aligned = x.data_ptr() % 16 == 0 and all(step % 8 == 0 for step in steps(x))
    return x if together and aligned else x.clone(memory_format=CHANNELS_LAST)


def aligned(x: Tensor) -> Tensor:
    """``x`` beginning at a multiple of 16 bytes, as 128-bit loads and TMA have it."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def sizes_of(x: Tensor, out: int, past: Tensor | None, plus: Tensor | None) -> Sizes:
    b, c, f, h, w = x.shape
    known = 0 if past is None else past.shape[2]
    apart = [(0, 0) if t is None or t.numel() == 0 else steps(t) for t in (x, past, plus)]
    return (b, f, known, h, w, c, out, *apart[0], *apart[1], *apart[2])


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor | None,
    keep: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(y if ``keep``, the norm of it if there is a gamma)."""
    x, weight = innermost(x), aligned(channels_last(weight))
    past = innermost(past) if past is not None and past.numel() else None
    plus = innermost(plus) if plus is not None else None
    bias, gamma = (None if t is None else aligned(t.contiguous()) for t in (bias, gamma))
    b, _, f, h, w = x.shape
    shape = (b, weight.shape[0], f, h, w)
    with torch.cuda.device(x.device):
        y, normed = (empty(shape, x) if wanted else None for wanted in (keep, gamma is not None))
        addresses = tuple(0 if t is None else t.data_ptr() for t in (x, past, weight, bias, plus, gamma, y, normed))
        stream = torch.cuda.current_stream().cuda_stream
        lib.causal_conv3d_cuda(sizes_of(x, shape[1], past, plus), addresses, stream)
    return y, normed


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
) -> Tensor:
    y, _ = _run(x, weight, bias, past, plus, None, True)
    assert y is not None
    return y


def causal_conv3d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y, normed = _run(x, weight, bias, past, plus, gamma, keep)
    assert normed is not None
    return normed, x.new_empty(0) if y is None else y

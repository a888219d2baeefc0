"""causal_conv3d and causal_conv3d_norm: the convolutions of causal video autoencoders, with what follows them."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.causal_conv3d import cuda, libraries, reference, tiles, triton
from glimt_kernels.causal_conv3d.call import call_of, empty, result_shape, sizes
from glimt_kernels.dispatch import Candidate, Case, define
from glimt_kernels.rms_norm_silu.api import rms_norm_silu
from glimt_kernels.triton_env import reluctance, triton_reasons


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    *,
    interleave: bool = False,
    impl: str | None = None,
) -> Tensor:
    """``conv(zeros, past, x) + bias + plus``: frame t of the result sees frames t - kt + 1 to t, and zeros around each.

    Args:
        x: [B, C, F, H, W] floating. Fastest with channels innermost (``torch.channels_last_3d``), as are all tensors
            here; a frame in any other layout is copied first, while frames and samples may lie anywhere.
        weight: [N, C, kt, kh, kw], the dtype of x; kh and kw are 1 or 3. Fastest with channels innermost.
        bias: [N].
        past: [B, C, P, H, W], P < kt: the frames before x. Zeros stand before those. Read in place.
        plus: of the result's shape, added to it.
        interleave: the halves of the N output channels become two frames, one behind the other.
        impl: "onednn", "cuda", "triton", "aten" or "reference" instead of the chosen implementation.

    Returns:
        [B, N, F, H, W], or with ``interleave`` [B, N / 2, 2 F, H, W], channels innermost, the dtype of x. Accumulated
        in float32 (float64 for float64); Triton rounds once, at the end, libraries once more before ``plus``.

    Raises:
        ValueError: shapes or dtypes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: Wan technical report, arXiv:2503.20314, section 4.1.
    """
    _check(x, weight, bias, past, plus, interleave)
    result: Tensor = CONV(x, weight, bias, past, plus, interleave, impl=impl)
    return result


def causal_conv3d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    *,
    keep: bool = True,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``y = causal_conv3d(...)``, and of it ``silu(sqrt(N) y / max(||y||_2, 1e-12) gamma)`` over the channels.

    Args:
        gamma: [N], the dtype of x. All others as for :func:`causal_conv3d`.
        keep: y is returned as well; else it is nowhere written, where that can be.
        impl: "cuda", "triton", "apart" (the two ops one after the other) or "reference" instead of the chosen
            implementation.

    Returns:
        (the norm with SiLU, y or None), both [B, N, F, H, W], channels innermost, the dtype of x. What is normalized is
        y as it is stored, rounded to its dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.
        UnsupportedError: ``impl`` cannot run this call.

    Source: as ``rms_norm_silu``, ``causal_conv3d``.
    """
    _check(x, weight, bias, past, plus, False, gamma)
    normed, y = NORM(x, weight, bias, past, plus, gamma, keep, impl=impl)
    return normed, y if keep else None


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    interleave: bool,
    gamma: Tensor | None = None,
) -> None:
    named = {"x": x, "weight": weight, "bias": bias, "past": past, "plus": plus, "gamma": gamma}
    given = {name: t for name, t in named.items() if t is not None}
    fits = x.dim() == weight.dim() == 5 and x.is_floating_point() and weight.numel() > 0
    fits = fits and all(t.dtype == x.dtype for t in given.values())
    if fits:
        (n, channels, times, *space), (b, c, _, h, w) = weight.shape, x.shape
        fits = channels == c and not set(space) - {1, 3} and not (interleave and n % 2)
        fits = fits and all(t is None or t.shape == (n,) for t in (bias, gamma))
        fits = fits and (plus is None or plus.shape == result_shape(x, weight, interleave))
        fits = fits and (past is None or (past.shape == (b, c, past.shape[2], h, w) and past.shape[2] < times))
    if not fits:
        raise ValueError(
            "a causal convolution takes x [B, C, F, H, W], weight [N, C, kt, kh, kw] with kh and kw 1 or 3, bias and "
            "gamma [N], past [B, C, P, H, W] with P < kt, and plus of the result's shape, all of one floating dtype; "
            "to interleave, N is even; found "
            + ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in given.items())
        )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    interleave: bool = False,
) -> Tensor:
    return empty(result_shape(x, weight, interleave), x)


def _fake_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = empty(result_shape(x, weight), x)
    return y, torch.empty_like(y) if keep else y.new_empty(0)


def _apart(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    plus: Tensor | None,
    gamma: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The norm reads a convolution of many channels once and writes once, with or without sums of squares from it."""
    y: Tensor = CONV(x, weight, bias, past, plus, False)
    rows = rms_norm_silu(y.permute(0, 2, 3, 4, 1), gamma)
    return rows.permute(0, 4, 1, 2, 3), y if keep else x.new_empty(0)


def _triton_reluctance(case: Case) -> list[str]:
    if case.device == "cuda" and case.dtype == torch.float32:
        return ["in float32 cuDNN goes first: Triton makes three products of one"]
    return reluctance(case)


def _apart_reasons(case: Case) -> list[str]:
    return ["in float64 the reference is the same"] if case.dtype == torch.float64 else []


def _norm_reasons(case: Case) -> list[str]:
    found = triton_reasons(case, (torch.float16, torch.bfloat16))
    if call_of(case).n > tiles.FUSED:
        found.append(f"it holds at most {tiles.FUSED} channels of a pixel in one program, found {call_of(case).n}")
    return found


CONV = define(
    "causal_conv3d",
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? past=None, Tensor? plus=None, bool interleave=False) "
    "-> Tensor",
    [
        Candidate("causal_conv3d", "onednn", libraries.onednn, libraries.onednn_reasons),
        Candidate("causal_conv3d", "cuda", cuda.causal_conv3d, cuda.reasons),
        Candidate("causal_conv3d", "triton", triton.causal_conv3d, triton_reasons, _triton_reluctance),
        Candidate("causal_conv3d", "aten", libraries.aten, libraries.aten_reasons),
        Candidate("causal_conv3d", "reference", reference.causal_conv3d),
    ],
    _fake,
    sizes=sizes,
)
NORM = define(
    "causal_conv3d_norm",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? past, Tensor? plus, Tensor gamma, bool keep) -> (Tensor, Tensor)",
    [
        Candidate("causal_conv3d_norm", "cuda", cuda.causal_conv3d_norm, cuda.norm_reasons),
        Candidate("causal_conv3d_norm", "triton", triton.causal_conv3d_norm, _norm_reasons, reluctance),
        Candidate("causal_conv3d_norm", "apart", _apart, _apart_reasons),
        Candidate("causal_conv3d_norm", "reference", reference.causal_conv3d_norm),
    ],
    _fake_norm,
    sizes=sizes,
)

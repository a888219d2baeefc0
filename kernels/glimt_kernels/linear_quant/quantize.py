"""Eight-bit numbers with scales: what they stand for, and how weights and activations become them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.eight_bit.reference import LIMITS, SMALLEST

# Kind -> (dtype of the data, its largest value).
KINDS: Mapping[str, tuple[torch.dtype, float]] = {
    name: (dtype, LIMITS[dtype]) for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn))
}
GRANULARITIES = ("channel", "block")
# Side of a weight's block and length of an activation's group that share one scale.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [N, K] in eight bits.

    Attributes:
        data: [N, K], int8 or float8_e4m3fn.
        scales: what ``data`` is multiplied by, float32: [N] (a checkpoint's single scale: ``scale.expand(N)``), or
            [ceil(N / 128), ceil(K / 128)].
        kind: "int8" or "fp8".
        granularity: "channel" (a scale per output channel) or "block" (a scale per 128 x 128 block).

    Raises:
        ValueError: they do not belong together; names all that is wrong.
    """

    data: Tensor
    scales: Tensor
    kind: str
    granularity: str = "channel"

    def __post_init__(self) -> None:
        check_kind(self.kind)
        check_granularity(self.granularity)
        wrong = []
        dtype, _ = KINDS[self.kind]
        if self.data.dim() != 2 or not self.data.numel():
            wrong.append(f"data must be [N, K] and not empty, found {list(self.data.shape)}")
        if self.data.dtype != dtype:
            wrong.append(f"data of kind {self.kind} must be {dtype}, found {self.data.dtype}")
        expected = _scales_shape(self.data.shape, self.granularity)
        if list(self.scales.shape) != expected:
            wrong.append(f"scales per {self.granularity} must be {expected}, found {list(self.scales.shape)}")
        if self.scales.dtype not in (torch.float32, torch.float64):
            wrong.append(f"scales must be float32, found {self.scales.dtype}")
        if self.scales.device != self.data.device:
            wrong.append(f"data is on {self.data.device}, scales are on {self.scales.device}")
        if wrong:
            raise ValueError("not a quantized weight: " + "; ".join(wrong))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.data.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same on another device."""
        return QuantizedWeight(self.data.to(device), self.scales.to(device), self.kind, self.granularity)

    def dequantize(self) -> Tensor:
        """[N, K] in the dtype of the scales."""
        return dequantize_weight(self.data, self.scales)


def check_kind(kind: str) -> None:
    """Raise ValueError for a kind that there is not."""
    _check_name("kind", kind, tuple(KINDS))


def check_granularity(granularity: str) -> None:
    """Raise ValueError for a granularity that there is not."""
    _check_name("granularity", granularity, GRANULARITIES)


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} must be {' or '.join(map(repr, known))}, not {name!r}{hint}")


def _scales_shape(shape: torch.Size, granularity: str) -> list[int]:
    return [-(-n // BLOCK) for n in shape] if granularity == "block" else list(shape[:1])


def quantize_weight(weight: Tensor, kind: str, granularity: str = "channel") -> QuantizedWeight:
    """Round a weight to eight bits, symmetrically, to nearest even, the largest magnitude of each scale's share exact.

    Args:
        weight: [N, K] floating.
        kind: "int8" (to 127) or "fp8" (e4m3, to 448).
        granularity: "channel" or "block"; see :class:`QuantizedWeight`.

    Raises:
        ValueError: an unknown name, another shape, or a weight that is not finite. (This waits for the device.)
    """
    check_kind(kind)
    check_granularity(granularity)
    if weight.dim() != 2 or not weight.numel() or not weight.is_floating_point():
        found = f"{weight.dtype} {list(weight.shape)}"
        raise ValueError(f"quantize_weight takes a weight [N, K], floating and not empty; found {found}")
    if not weight.is_meta and not weight.isfinite().all():
        raise ValueError(f"the weight {list(weight.shape)} holds NaN or infinity, which no scale can express")
    wide = widen(weight.detach())
    if granularity == "channel":
        data, scales = scale_and_round(wide, kind)
        return QuantizedWeight(data, scales.squeeze(-1), kind, granularity)
    n, k = wide.shape
    rows, columns = -(-n // BLOCK), -(-k // BLOCK)
    padded = F.pad(wide, (0, columns * BLOCK - k, 0, rows * BLOCK - n))
    blocks = padded.view(rows, BLOCK, columns, BLOCK).transpose(1, 2).reshape(rows, columns, BLOCK * BLOCK)
    data, scales = scale_and_round(blocks, kind)
    whole = data.view(rows, columns, BLOCK, BLOCK).transpose(1, 2).reshape(rows * BLOCK, columns * BLOCK)
    return QuantizedWeight(whole[:n, :k].contiguous(), scales.squeeze(-1), kind, granularity)


def quantize_rows(x: Tensor, kind: str, groups: bool = False) -> tuple[Tensor, Tensor]:
    """What the op of this name means (contract in api.py)."""
    wide = widen(x)
    if not groups:
        data, scales = scale_and_round(wide, kind)
        return data, scales.squeeze(-1)
    k = x.shape[-1]
    count = -(-k // BLOCK)
    split = F.pad(wide, (0, count * BLOCK - k)).reshape(*x.shape[:-1], count, BLOCK)
    data, scales = scale_and_round(split, kind)
    return data.flatten(-2)[..., :k].contiguous(), scales.squeeze(-1)


def scale_and_round(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(x in eight bits, its scales [..., 1]), one scale for the last axis.

    Where a NaN or an infinity is, the data are 0 and the scale is not finite, so that no product hides it.
    """
    dtype, top = KINDS[kind]
    largest = x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST)
    inverse = torch.full_like(largest, top) / largest  # ``top / largest`` would round twice
    scaled = (x * inverse).nan_to_num(0.0).clamp(-top, top)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), largest * (1 / top)


def widen(x: Tensor) -> Tensor:
    """float64 as it is, all else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def dequantize_rows(data: Tensor, scales: Tensor) -> Tensor:
    """What rows [..., K] with scales [...] or [..., ceil(K / 128)] stand for, in the dtype of the scales."""
    if scales.dim() == data.dim():
        return data.to(scales.dtype) * scales.repeat_interleave(BLOCK, -1)[..., : data.shape[-1]]
    return data.to(scales.dtype) * scales.unsqueeze(-1)


def dequantize_weight(data: Tensor, scales: Tensor) -> Tensor:
    """What a weight [N, K] with scales [N] or [ceil(N / 128), ceil(K / 128)] stands for, in the dtype of the scales."""
    if scales.dim() == 2:
        n, k = data.shape
        return data.to(scales.dtype) * scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:n, :k]
    return data.to(scales.dtype) * scales[:, None]

"""The launch shapes of the convolution kernel, and the list of them that is compiled ahead of time.

Found by compiling for every chip (README.md holds the ladder): the largest tile without spills, within shared memory.
None has been timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt_kernels.resources import SHARED_LIMIT
from glimt_kernels.triton_env import ARCHS, VERSION, Build

# Output channels whose norm fits the program that makes them.
FUSED = 384


class Layer(NamedTuple):
    """What a kernel is made for: channels in and out (of each group), its taps, and where the groups go.

    ``place``: "plain" (one group), "frames" (two) or "pixels" (four), as in ``triton.py``.
    """

    channels: int
    n: int
    taps: tuple[int, int, int] = (3, 3, 3)
    place: str = "plain"

    @property
    def groups(self) -> int:
        return {"plain": 1, "frames": 2, "pixels": 4}[self.place]


def layer_of(weight: Tensor, place: str) -> Layer:
    """Of a weight [groups x N, C, taps in time, rows, columns]."""
    n, channels, times, rows, columns = weight.shape
    found = Layer(channels, n, (times, rows, columns), place)
    return found._replace(n=n // found.groups)


class Tile(NamedTuple):
    """Pixels of a program, parts of a step along K, parts of the output channels, and how it is launched."""

    m: int
    k: tuple[int, ...]
    n: tuple[int, ...]
    warps: int
    stages: int


def parts(size: int, most: int) -> tuple[int, ...]:
    """``size``, made a multiple of 16, as a sum of powers of two, each at most ``most``, the widest first."""
    left, found = -(-size // 16) * 16, []
    while left:
        found.append(min(most, 1 << (left.bit_length() - 1)))
        left -= found[-1]
    return tuple(found)


def _step(channels: int, widest: int) -> tuple[int, ...]:
    """Channels of a step along K: whole where they can be."""
    if channels in (48, 96) and widest == 64:  # one step a tap: less addressing for each product
        return parts(channels, widest)
    return (next((step for step in (64, 32, 16) if step <= widest and channels % step == 0), min(32, widest)),)


def _across(n: int, most: int, *, whole: bool) -> tuple[int, ...]:
    """Output channels of a program: ``whole``, or of the tiles up to ``most`` the widest that leaves nothing over."""
    if whole or n <= most:
        return parts(n, 128)
    return parts(
        next((tile for tile in (192, 160, 128, 96, 64, 32) if tile <= most and n % tile == 0), min(128, most)), 128
    )


def tile(arch: int, dtype: torch.dtype, layer: Layer, *, norm: bool = False) -> Tile:
    """The tile of a layer on a chip; ``norm``: with the norm over all its output channels behind it."""
    if dtype == torch.float32:  # three products for one, and both operands split in three: registers are the limit
        return _with_stages(arch, Tile(128, _step(layer.channels, 32), _across(layer.n, 64, whole=False), 8, 3), 4)
    n = _across(layer.n, 192, whole=norm)
    m = 64 if sum(n) > 192 else 128
    # From the second-level cache comes (m + n) / (m n) of a byte for each product: on sm_90, too much for 128 pixels.
    if arch == 90 and sum(n) <= 96:
        m = 256
    if VERSION < (3, 7) and arch < 90 and layer.place == "pixels" and n == (64, 32):
        n = (32, 32, 32)  # there 64 + 32 spill 16 bytes
    return _with_stages(arch, Tile(m, _step(layer.channels, 64), n, 8, 3), 2)


def _with_stages(arch: int, chosen: Tile, item_bytes: int) -> Tile:
    """With as many stages as shared memory holds, three at most; with shorter steps where it holds less than three."""
    step_bytes = (chosen.m + sum(chosen.n)) * sum(chosen.k) * item_bytes
    # The matrix units of sm_90 and sm_100 read shared memory until they are done, so a stage is not free any earlier.
    stages = SHARED_LIMIT[arch] // step_bytes + (arch not in (90, 100))
    if stages < 3 and chosen.k == (64,):
        return _with_stages(arch, chosen._replace(k=(32,)), item_bytes)
    return chosen._replace(stages=min(3, stages))


def starts(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Where each part begins, and after the last the end."""
    return tuple(sum(widths[:count]) for count in range(len(widths) + 1))


def launch(
    arch: int, dtype: torch.dtype, layer: Layer, *, bias: bool, plus: bool, norm: bool = False, keep: bool = True
) -> tuple[dict[str, Any], dict[str, int]]:
    """(constants of the kernel, launch options); ``keep``: the convolution itself is stored."""
    chosen = tile(arch, dtype, layer, norm=norm)
    times, rows, columns = layer.taps
    constants = {
        "M_TILE": chosen.m,
        "K_PARTS": chosen.k,
        "N_PARTS": chosen.n,
        "K_STARTS": starts(chosen.k),
        "N_STARTS": starts(chosen.n),
        "CHANNELS": layer.channels,
        "N": layer.n,
        "TIMES": times,
        "ROWS": rows,
        "COLUMNS": columns,
        "GROUPS": layer.groups,
        "PLACE": layer.place,
        "BIASED": bias,
        "PLUS": plus,
        "NORM": norm,
        "KEEP": keep,
    }
    return constants, {"num_warps": chosen.warps, "num_stages": chosen.stages}


NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# The matrix instruction by operands.
_MATRIX = {arch: {90: "HGMMA", 100: "UTC"}.get(arch, "HMMA") for arch in ARCHS}


def builds(
    kernel: Any,
    op: str,
    case: str,
    layer: Layer,
    dtype: torch.dtype = torch.bfloat16,
    *,
    plus: bool = False,
    norm: bool = False,
) -> Iterator[Build]:
    """One build of a layer with a bias for all chips that are launched alike."""
    alike: dict[str, list[int]] = {}
    for arch in ARCHS:
        alike.setdefault(repr(launch(arch, dtype, layer, bias=True, plus=plus, norm=norm)), []).append(arch)
    for archs in alike.values():
        constants, options = launch(archs[0], dtype, layer, bias=True, plus=plus, norm=norm)
        yield Build(
            op=op,
            case=f"{NAMES[dtype]} {case}",
            kernel=kernel,
            signature=_signature(NAMES[dtype]),
            constants=constants,
            archs=tuple(archs),
            needs={arch: (_MATRIX[arch],) for arch in archs},
            num_warps=options["num_warps"],
            num_stages=options["num_stages"],
        )


def _signature(name: str) -> Mapping[str, str]:
    pointers = dict.fromkeys(("x", "past", "weight", "bias", "plus", "gamma", "out", "normed"), f"*{name}")
    steps = [f"{what}_{axis}" for what in ("x", "past", "plus") for axis in ("sample", "frame")]
    counts = ("frames", "height", "width", "known")
    return {**pointers, **dict.fromkeys(counts, "i32"), **dict.fromkeys(steps, "i64"), "root": "fp32"}

"""Work counted by hand, and how fast this machine does it.

Counts are multiply-adds of the matrix products and convolutions, times two; elementwise work is left out. They are
those of the plain algorithm: exact savings (padding folded away, upsampling folded into its convolution) make a run
cheaper than its count. With S video tokens, L text tokens, width d:

    transformer, per block and forward: 8 S d^2 (q, k, v, out) + 4 S^2 d (attention) + 4 S d^2 (cross q, out)
                                        + 4 S L d (cross attention) + 4 S d ffn
    convolution:                        2 * kernel volume * C_in * C_out * output positions
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.models.wan.vae_tiles import tiles
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid

# Share of the machine's matrix-product rate that each kind of stage reaches, and seconds it takes however small it is:
# rounded, from networks of the bundled model's size on one CPU core. The report of a run says what it really took.
_EFFICIENCY = {"text": 0.3, "image": 0.6, "preview": 0.6, "denoise": 0.5, "decode": 0.75}
_FIXED_S = {"text": 0.01, "image": 0.01, "preview": 0.01, "denoise": 0.0, "decode": 0.0}


def transformer_flops(config: WanTransformerConfig, grid: TokenGrid, text_tokens: int, image_tokens: int = 0) -> int:
    """FLOPs of one forward with the text's keys and values already computed (:func:`context_flops`)."""
    n, d = grid.count, config.width
    patch = math.prod(config.patch_size)
    block = 8 * n * d * d + 4 * n * n * d + 4 * n * d * d + 4 * n * (text_tokens + image_tokens) * d
    block += 4 * n * d * config.ffn_dim
    return config.num_layers * block + 2 * n * patch * d * (config.in_channels + config.out_channels)


def context_flops(config: WanTransformerConfig, text_tokens: int, image_tokens: int = 0) -> int:
    """FLOPs of what is computed once per prompt: projected text and image, keys and values of every block."""
    d = config.width
    text = 2 * text_tokens * (config.text_dim * d + d * d)
    image = 0
    if config.image_dim is not None:
        image = 2 * image_tokens * (config.image_dim * config.image_dim + config.image_dim * d)
    return text + image + config.num_layers * 4 * (text_tokens + image_tokens) * d * d


@dataclass(frozen=True)
class Traffic:
    """Bytes to and from memory: of matrix products with what is fused to them, of attention, and of all else."""

    matrix: int
    attention: int
    other: int

    @property
    def total(self) -> int:
        return self.matrix + self.attention + self.other


def attention_flops(config: WanTransformerConfig, grid: TokenGrid, text_tokens: int, image_tokens: int = 0) -> int:
    """The part of :func:`transformer_flops` that is attention, of the video and across."""
    n, d = grid.count, config.width
    return config.num_layers * 4 * n * (n + text_tokens + image_tokens) * d


def transformer_bytes(
    config: WanTransformerConfig,
    grid: TokenGrid,
    text_tokens: int,
    image_tokens: int = 0,
    *,
    item_bytes: int,
    eight_bit: bool = False,
) -> Traffic:
    """What one forward moves where each kernel reads its inputs once and writes its result once.

    The kernels are the 13 of a block (``models/wan/transformer.py``), in a dtype of ``item_bytes``. With X the
    bytes of all tokens at the transformer's width and F at that of its MLP: products 15 X + 2 F and the weights (qkv 4,
    out 3, cross q 2, cross out 3, up 1, down 2: what is added to is read), attention 6 X and the context's keys and
    values, norms and rotation 12 X and the rotation's float32 tables. ``eight_bit``: as ``WanTransformer.quantize`` has
    it, where levels of one byte are read and written beside them. Image tokens add an attention (2 X) and a sum
    (3 X).
    """
    n, d, layers = grid.count, config.width, config.num_layers
    x, inner, patch = n * d * item_bytes, n * config.ffn_dim * item_bytes, math.prod(config.patch_size)
    image = bool(image_tokens)
    ends = n * patch * (config.in_channels + config.out_channels) * item_bytes
    matrix = 15 * x + 2 * inner + (6 * d * d + 2 * d * config.ffn_dim) * item_bytes
    attention = (6 + 2 * image) * x + 2 * (text_tokens + image_tokens) * d * item_bytes
    norms = (12 + 3 * image) * x + n * config.attention_head_dim * 4
    if eight_bit:
        levels, hidden = n * d, n * config.ffn_dim
        matrix += 4 * levels + hidden - 4 * x - inner - (5 * d * d + 2 * d * config.ffn_dim) * (item_bytes - 1)
        attention += 3 * (levels - x)
        # The norms give levels, and so do four passes of their own: of the values, and before three products.
        norms += 4 * (levels - x) + 3 * (x + levels) + inner + hidden + 5 * x // 17  # of every 17th key, the mean
    latents = n * patch * config.in_channels * 4
    return Traffic(
        matrix=layers * matrix + 2 * x + ends,
        attention=layers * attention,
        other=layers * norms + 2 * x + 2 * ends + latents,
    )


def text_encoder_flops(config: Mapping[str, Any], tokens: int) -> int:
    """FLOPs of one pass of a UMT5 encoder (``config``: its ``config.json``) over ``tokens`` tokens."""
    d, inner = int(config["d_model"]), int(config["num_heads"]) * int(config["d_kv"])
    gated = 3 if "gated" in str(config.get("feed_forward_proj", "gated-gelu")) else 2
    layer = 8 * tokens * d * inner + 4 * tokens * tokens * inner + 2 * gated * tokens * d * int(config["d_ff"])
    return int(config["num_layers"]) * layer


def vae_decode_flops(config: WanVaeConfig, grid: LatentGrid, rows: int = 1, columns: int = 1) -> int:
    """FLOPs of decoding one clip, in tiles with their overlaps, and for each tile what comes before."""
    z, mult = config.z_dim, config.dim_mult[::-1]
    base = config.decoder_base_dim or config.base_dim
    dims = [base * m for m in (mult[0], *mult)]
    temporal = config.temperal_downsample[::-1]
    f, h, w = grid.frames, grid.height, grid.width
    trunk = _conv(1, z, z, f * h * w) + _conv(27, z, dims[0], f * h * w) + _mid_block(dims[0], f, h, w)
    total = rows * columns * trunk
    areas = _tiled_areas(config, h, w, rows, columns)
    for i, (a, b) in enumerate(pairwise(dims)):
        a = a // 2 if i > 0 and not config.is_residual else a
        total += _residual_blocks(a, b, config.num_res_blocks + 1, f * areas[i])
        if i == len(mult) - 1:
            break
        if temporal[i]:
            total += _conv(3, b, 2 * b, (f - 1) * areas[i])
            f = 2 * f - 1
        total += _conv(9, b, b if config.is_residual else b // 2, f * 4 * areas[i])
    return total + _conv(27, dims[-1], config.out_channels, f * areas[-1])


def _tiled_areas(config: WanVaeConfig, height: int, width: int, rows: int, columns: int) -> list[int]:
    """Pixels that enter each level of the decoder after attention, those of all tiles together."""
    down = [part.boxes for part in tiles(config, height, 1, rows, 1)]
    across = [part.boxes for part in tiles(config, 1, width, 1, columns)]
    levels = range(len(config.dim_mult))
    return [sum(boxes[i].height for boxes in down) * sum(boxes[i].width for boxes in across) for i in levels]


def vae_encode_flops(config: WanVaeConfig, grid: PixelGrid) -> int:
    """FLOPs of encoding one clip."""
    dims = [config.base_dim * m for m in (1, *config.dim_mult)]
    side = config.patch_size or 1
    f, h, w = grid.frames, grid.height // side, grid.width // side
    total = _conv(27, config.in_channels, dims[0], f * h * w)
    for i, (a, b) in enumerate(pairwise(dims)):
        total += _residual_blocks(a, b, config.num_res_blocks, f * h * w)
        if i == len(config.dim_mult) - 1:
            break
        h, w = h // 2, w // 2
        total += _conv(9, b, b, f * h * w)
        if config.temperal_downsample[i]:
            total += _conv(3, b, b, (f - 1) // 2 * h * w)
            f = 1 + (f - 1) // 2
    total += _mid_block(dims[-1], f, h, w)
    return (
        total
        + _conv(27, dims[-1], 2 * config.z_dim, f * h * w)
        + _conv(1, 2 * config.z_dim, 2 * config.z_dim, f * h * w)
    )


def _conv(kernel: int, c_in: int, c_out: int, positions: int) -> int:
    return 2 * kernel * c_in * c_out * positions


def _residual_blocks(a: int, b: int, count: int, positions: int) -> int:
    first = _conv(27, a, b, positions) + _conv(27, b, b, positions) + (_conv(1, a, b, positions) if a != b else 0)
    return first + (count - 1) * 2 * _conv(27, b, b, positions)


def _mid_block(c: int, f: int, h: int, w: int) -> int:
    n = h * w
    return _residual_blocks(c, c, 2, f * n) + _conv(1, c, 4 * c, f * n) + 4 * f * n * n * c


@dataclass(frozen=True)
class Rate:
    """A machine's speed at matrix products, and where the number comes from."""

    flops_per_s: float
    source: str


@lru_cache(maxsize=8)
def machine_rate(device: str, dtype: str) -> Rate:
    """Measure a square matrix product, run as the models run theirs: a few milliseconds, once per process.

    The best of several, so that other work on the machine is mostly left out.
    """
    import torch

    from glimt.models.linear import linear

    size = 4096 if device.startswith("cuda") else 512
    best = math.inf
    with torch.inference_mode():
        a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
        for _ in range(5):
            _wait(device)
            start = time.perf_counter()
            linear(a, a)
            _wait(device)
            best = min(best, time.perf_counter() - start)
    threads = "" if device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    return Rate(2 * size**3 / best, f"{dtype} matrix product of {size} on {device}{threads}")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def estimated_seconds(stage: str, flops: int, rate: Rate) -> float:
    """Seconds a stage of ``flops`` should take at ``rate``; ``stage`` is text, image, preview, denoise or decode."""
    return _FIXED_S[stage] + flops / (rate.flops_per_s * _EFFICIENCY[stage])

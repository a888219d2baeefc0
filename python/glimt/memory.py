"""How much memory a request will need, stage by stage, and what would fit when it is too much.

Weights are counted from the checkpoint's headers. Activations are estimates: the tensors alive together at the widest
place of each network, times factors fitted to measured peaks. They err on the side of too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glimt.env import available_memory_bytes, total_memory_bytes
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid

# Tensors of the given width alive at once, per token or position.
_TOKEN_WIDTHS = 10
_FFN_WIDTHS = 2
_VAE_WIDTHS = 8
_RESIDUAL_VAE_WIDTHS = 10
_CHUNK_BYTES = 256 * 2**20
# What the convolution library keeps for itself.
_SCRATCH_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Budget:
    """How much memory may be used, and who says so."""

    limit_bytes: int
    source: str


def budget(configured: int | None, device: str, held_bytes: int = 0) -> Budget:
    """The memory a request may need: what was configured, else what is free on the device.

    ``held_bytes``: what the engine holds already and counts as its own (weights that are loaded).
    """
    if configured is not None:
        return Budget(configured, "configured")
    if device.startswith("cuda"):
        import torch

        return Budget(torch.cuda.mem_get_info(device)[0] + held_bytes, f"free on {device}")
    free = available_memory_bytes()
    if free is None:
        free = total_memory_bytes()
    if free is None:
        return Budget(2**63 - 1, "unknown: this system does not tell its free memory")
    return Budget(free + held_bytes, "free memory")


def text_bytes(config: Mapping[str, Any], tokens: int, item_bytes: int) -> int:
    """Activations of the text encoder over one prompt of ``tokens`` tokens, padding included."""
    width = max(int(config["d_model"]), int(config["num_heads"]) * int(config["d_kv"]))
    widest = 4 * width + 3 * int(config["d_ff"])
    scores = 3 * int(config["num_heads"]) * tokens * tokens
    return item_bytes * (tokens * widest + scores)


def denoise_bytes(
    config: WanTransformerConfig,
    latents: LatentGrid,
    tokens: TokenGrid,
    text_tokens: int,
    prompts: int,
    item_bytes: int,
    networks: int = 1,
) -> int:
    """Activations of one forward for all prompts, their keys and values in every block, and the solver's latents.

    ``networks``: how many transformers keep their keys and values at once.
    """
    widths = _TOKEN_WIDTHS * config.width + _FFN_WIDTHS * config.ffn_dim
    activations = prompts * tokens.count * widths * max(item_bytes, 4)
    context = networks * prompts * config.num_layers * 2 * text_tokens * config.width * item_bytes
    volume = latents.frames * latents.height * latents.width
    return activations + context + 4 * volume * (8 * latents.channels + 2 * config.in_channels)


def decode_bytes(config: WanVaeConfig, grid: LatentGrid, chunk: int, item_bytes: int) -> int:
    """The widest level of one chunk of ``chunk`` latent frames, and the two frames every convolution carries over."""
    mult = config.dim_mult[::-1]
    base = config.decoder_base_dim or config.base_dim
    frames, area, widest, carried = chunk, grid.height * grid.width, 0, 0
    for i, factor in enumerate(mult):
        carried += 4 * (config.num_res_blocks + 1) * base * factor * area
        if i < len(mult) - 1:  # upsampling comes before the channels are reduced
            frames *= 2 if config.temperal_downsample[::-1][i] else 1
            area *= 4
        widest = max(widest, frames * area * base * factor)
    pixels = 3 * frames * grid.height * grid.width * config.scale_factor_spatial**2
    widths = _RESIDUAL_VAE_WIDTHS if config.is_residual else _VAE_WIDTHS
    return item_bytes * (widths * widest + carried) + 5 * pixels + _SCRATCH_BYTES


def stills_bytes(config: WanVaeConfig, grid: LatentGrid, item_bytes: int) -> int:
    """The same of a preview: up to three latent frames, each decoded as the first of a clip."""
    return min(grid.frames, 3) * decode_bytes(config, grid, 1, item_bytes)


def decode_chunk(config: WanVaeConfig, grid: LatentGrid) -> int:
    """Latent frames to decode at a time: up to 3 while that is small, else 1.

    Three at a time take 15 % less time than one (bundled model, CPU); more gain nothing. It follows from the size
    alone, not from the machine, because different chunks may differ in the last bit.
    """
    return max((n for n in (1, 2, 3) if decode_bytes(config, grid, n, 4) <= _CHUNK_BYTES), default=1)


def encode_bytes(config: WanVaeConfig, clip: PixelGrid, item_bytes: int) -> int:
    """The same of encoding one chunk of frames: its first level is the widest."""
    side = config.patch_size or 1
    area = clip.height // side * (clip.width // side)
    frames = min(clip.frames, config.scale_factor_temporal)
    return item_bytes * _VAE_WIDTHS * frames * area * config.base_dim * config.dim_mult[0] + _SCRATCH_BYTES


def what_would_fit(
    peak: Callable[[PixelGrid], int], clip: PixelGrid, scale_t: int, multiple: tuple[int, int], limit_bytes: int
) -> list[str]:
    """Smaller requests that fit: the most frames of this size, and the largest size of this shape with these frames;
    when there is neither, the largest that has fewer frames and a smaller size at once, both reduced alike."""
    found = []
    frames = _largest(
        (clip.frames - 1) // scale_t, lambda n: peak(PixelGrid(1 + n * scale_t, clip.height, clip.width)), limit_bytes
    )
    if frames is not None:
        found.append(f"num_frames={1 + frames * scale_t} at {clip.width}x{clip.height}")
    sizes = _shrunk_sizes(clip, multiple)
    size = _largest(len(sizes) - 1, lambda n: peak(PixelGrid(clip.frames, *sizes[n])), limit_bytes)
    if size is not None:
        found.append(f"{sizes[size][1]}x{sizes[size][0]} with num_frames={clip.frames}")
    if found:
        return found

    def both(n: int) -> PixelGrid:
        return PixelGrid(1 + (clip.frames - 1) // scale_t * (n + 1) // len(sizes) * scale_t, *sizes[n])

    step = _largest(len(sizes) - 1, lambda n: peak(both(n)), limit_bytes)
    if step is not None:
        found.append(f"{both(step).width}x{both(step).height} with num_frames={both(step).frames}")
    return found


def smallest(multiple: tuple[int, int]) -> PixelGrid:
    """The clip that needs the least memory."""
    return PixelGrid(1, *multiple)


def _shrunk_sizes(clip: PixelGrid, multiple: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) on the grid from the smallest to the one asked for, at about its aspect."""
    rows = clip.height // multiple[0]
    columns = clip.width // multiple[1]
    return [(n * multiple[0], max(1, round(columns * n / rows)) * multiple[1]) for n in range(1, rows + 1)]


def _largest(last: int, peak: Callable[[int], int], limit_bytes: int) -> int | None:
    """The largest n in [0, last] whose peak fits, for a peak that grows with n."""
    if peak(0) > limit_bytes:
        return None
    low, high = 0, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= limit_bytes else (low, middle - 1)
    return low

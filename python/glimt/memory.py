"""How much memory a request will need, stage by stage, and what would fit when it is too much.

Weights are counted from the checkpoint's headers. Activations are estimates: the tensors alive together at the widest
place of each network, times factors fitted to measured peaks. They err on the side of too much. The autoencoder's are
in ``glimt.plan.vae``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glimt.env import available_memory_bytes, total_memory_bytes
from glimt.models.wan.config import WanTransformerConfig
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid

# Tensors of the given width alive at once, per token or position.
_TOKEN_WIDTHS = 10
_FFN_WIDTHS = 2


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

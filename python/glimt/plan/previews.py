"""What previews are made by and cost, and what a tiny decoder costs: counted, so that the plan can choose and say.

Counts are those of the plain algorithm, as in :mod:`glimt.profile`; the 1x1 that spreads a frame in time goes into the
3x3 behind it and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glimt.models.taehv.config import TinyConfig, TinyLevel
from glimt.models.wan.config import WanVaeConfig
from glimt.plan.vae import DecodePlan
from glimt.shapes import LatentGrid, PixelGrid

MOST_SHARE = 0.02  # of a step's arithmetic, that a preview may take where its maker is left to the plan
LINEAR_SIDE = 4  # pixels of a clip a side for each of a linear preview's, where latents are coarse enough
# What a linear map is fitted on, once: clips of so many cells a side and latent frames.
FIT_CLIPS, FIT_CELLS, FIT_FRAMES = 4, 12, 3
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PreviewPlan:
    """What every preview of a run is.

    Attributes:
        by: ``tiny`` or ``linear``.
        frames, height, width: of the small clip: a frame for each latent frame.
        doublings: how many levels of the tiny decoder double H and W; 0 for ``linear``.
        flops: of one preview. ``share``: those over a step's.
        peak_bytes: beside what the step itself holds.
    """

    by: str
    frames: int
    height: int
    width: int
    doublings: int
    flops: int
    share: float
    peak_bytes: int

    def __str__(self) -> str:
        how = "the tiny decoder" if self.by == "tiny" else "a linear map of latents"
        size = f"{self.frames} frames of {self.width}x{self.height}"
        return f"{size} by {how}, {self.flops / 1e9:.3f} GFLOP each, {100 * self.share:.2g} % of a step's"


def plan_preview(
    asked: str, tiny: TinyConfig | None, vae: WanVaeConfig, latents: LatentGrid, step_flops: int, item_bytes: int
) -> PreviewPlan:
    """The preview for ``asked``: ``tiny``, ``linear``, or ``auto`` (see :class:`glimt.request.GenerateRequest`).

    The tiny decoder doubles H and W as often as :data:`MOST_SHARE` allows; where it is asked for by name, it is taken
    though the share be larger, without doubling.
    """
    if tiny is not None and asked != "linear":
        plans = [_tiny(tiny, latents, n, step_flops, item_bytes) for n in range(len(tiny.decoder.levels) + 1)]
        within = [plan for plan in plans if plan.share <= MOST_SHARE]
        if within or asked == "tiny":
            return within[-1] if within else plans[0]
    from glimt.models import latent_rgb  # brings PyTorch

    side, cells = linear_side(vae), latents.frames * latents.height * latents.width
    flops = latent_rgb.flops(latents.channels, side, cells)
    peak = 4 * cells * (2 * latents.channels + 4 * 3 * side * side)
    size = (latents.frames, side * latents.height, side * latents.width)
    return PreviewPlan("linear", *size, 0, flops, flops / step_flops, peak)


def tiny_problems(values: Mapping[str, Any], model: str, tiny: TinyConfig | None, quality: str) -> Iterator[str]:
    """What a request wants of a tiny decoder that is not there, or that the quality does not allow."""
    for name, other in (("decoder", "vae"), ("preview", "linear")):
        if values.get(name) == "tiny" and tiny is None:
            yield (
                f"{name}: {model} has no tiny decoder; open it with one of the TAEHV form for its latents"
                f" (tiny_decoder='taew2_1.safetensors' for those of Wan 2.1), or use {name}={other!r}"
            )
    if values["decoder"] == "tiny" and tiny is not None and quality != "lossy":
        yield (
            f"decoder: 'tiny' changes the picture (class lossy), and this engine allows {quality!r} at most; open it"
            " with quality='lossy', or use decoder='vae'"
        )


def linear_side(vae: WanVaeConfig) -> int:
    """Pixels a side that a linear preview has for each latent."""
    return max(1, vae.scale_factor_spatial // LINEAR_SIDE)


def fit_grids(vae: WanVaeConfig) -> tuple[LatentGrid, PixelGrid]:
    """Latents and pixels of one of the clips that a linear map is fitted on."""
    latents = LatentGrid(vae.z_dim, FIT_FRAMES, FIT_CELLS, FIT_CELLS)
    return latents, latents.pixels(vae.scale_factor_temporal, vae.scale_factor_spatial)


def _tiny(config: TinyConfig, latents: LatentGrid, doublings: int, step_flops: int, item_bytes: int) -> PreviewPlan:
    flops = tiny_flops(config, latents, doublings=doublings, grow=False)
    peak = tiny_bytes(config, latents, latents.frames, item_bytes, doublings=doublings, grow=False)
    side = config.patch_size * 2**doublings
    size = (latents.frames, side * latents.height, side * latents.width)
    return PreviewPlan("tiny", *size, doublings, flops, flops / step_flops, peak)


def tiny_flops(config: TinyConfig, latents: LatentGrid, *, doublings: int | None = None, grow: bool = True) -> int:
    """FLOPs of decoding a clip, or with fewer doublings and no growing in time of a preview of it."""
    widths = [level.width for level in config.decoder.levels]
    total = 18 * config.latent_channels * widths[0] * latents.frames * latents.height * latents.width
    after = [*widths[1:], config.decoder.outer]
    end = 0
    for (level, here, there), out in zip(_levels(config, latents, latents.frames, doublings, grow), after, strict=True):
        total += level.blocks * _block_flops(level) * here + 18 * level.width * out * there
        end = there
    return total + 18 * config.decoder.outer * 3 * config.patch_size**2 * end


def tiny_bytes(
    config: TinyConfig,
    latents: LatentGrid,
    chunk: int,
    item_bytes: int,
    *,
    doublings: int | None = None,
    grow: bool = True,
) -> int:
    """Memory of decoding ``chunk`` latent frames at a time: the most of any place, and a frame that each block keeps.

    A block holds four tensors of its width at once. Where a level ends, its frames and the doubled ones become the next
    level's, once in the order of the convolution and once in that of time; its weights are multiplied out (25 taps: a
    3x3, and the four 2x2 that it is to a doubled picture). A sixteenth more, for edges.
    """
    widest = kept = end = 0
    after = [*[level.width for level in config.decoder.levels][1:], config.decoder.outer]
    for (level, here, there), out in zip(_levels(config, latents, chunk, doublings, grow), after, strict=True):
        doubled = there // (level.frames if grow else 1)
        weights = 25 * level.width * out * level.frames
        rise = max(level.width * (here + doubled) + out * there, 2 * out * there)
        widest = max(widest, 4 * level.width * here, rise + weights)
        kept += level.blocks * level.width * here // chunk
        end = there
    pixels = 3 * config.patch_size**2 * end
    head = item_bytes * max(config.decoder.outer * end + pixels, 3 * pixels) + 5 * pixels
    return (max(item_bytes * widest, head) + item_bytes * kept) * 17 // 16


def tiny_chunk(config: TinyConfig, latents: LatentGrid) -> int:
    """Latent frames to decode at a time: as many as are small, at most 8. It follows from the size alone."""
    fitting = (n for n in range(1, min(8, latents.frames) + 1) if tiny_bytes(config, latents, n, 4) <= _CHUNK_BYTES)
    return max(fitting, default=1)


def plan_tiny_decode(config: TinyConfig, latents: LatentGrid, item_bytes: int) -> DecodePlan:
    """How the tiny decoder makes the frames of a clip: whole pictures, :func:`tiny_chunk` latent frames at a time."""
    chunk = tiny_chunk(config, latents)
    peak = tiny_bytes(config, latents, chunk, item_bytes)
    piece = chunk * config.scale_t
    return DecodePlan(chunk, piece, 1, 1, False, peak, tiny_flops(config, latents), 0)


def _block_flops(level: TinyLevel) -> int:
    """FLOPs of one block for each position."""
    n = level.width
    if not level.groups:
        return 18 * (2 * n * n + n * n + n * n)
    return 2 * (2 * n * n + n * n) + 2 * 18 * n * n // level.groups


def _levels(
    config: TinyConfig, latents: LatentGrid, frames: int, doublings: int | None, grow: bool
) -> Iterator[tuple[TinyLevel, int, int]]:
    """Each level with the number of positions (frames x height x width) of its blocks, and of what it hands on."""
    area = latents.height * latents.width
    for i, level in enumerate(config.decoder.levels):
        here = frames * area
        frames *= level.frames if grow else 1
        area *= 4 if doublings is None or i < doublings else 1
        yield level, here, frames * area

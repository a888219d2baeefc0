"""What the video autoencoder needs in memory, by walking through it, and how a clip is cut to fit.

Frame by frame (``glimt.models.wan.vae_cache``) there are the windows of all convolutions, the weights in the order in
which they are read, and of each level the frame that is on its way. Chunk by chunk there are the frames that each
convolution looks back on, and the tensors of a piece at the widest place. Neither grows with the number of frames.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import pairwise, product
from typing import Any

from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae_tiles import Box, Tile, tile, tiles
from glimt.profile import vae_decode_flops
from glimt.shapes import LatentGrid, PixelGrid

_HISTORY = 2  # frames that a convolution of three looks back on
_KEPT = 2  # frames that it keeps from chunk to chunk
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_CHUNK_BYTES = 256 * 2**20
# Beside the tensors: what the convolution library keeps for itself. What the allocator keeps of memory that is free is
# not counted: below some 32 MB a tensor, that can be a fifth more.
_OWN_BYTES = 3 * 2**20


@dataclass(frozen=True)
class DecodePlan:
    """How a clip is decoded.

    Attributes:
        chunk: latent frames at a time.
        piece: the most frames that pass a layer together.
        rows, columns: tiles, decoded one after the other; 1 x 1 is the whole picture.
        by_frames: whether the frames of a chunk go one by one (on a CPU) or together.
        peak_bytes: planned peak, weights not among it.
        flops: of the whole clip, overlaps and what is repeated for each tile among them.
        spool_bytes: room on the disk for frames that wait for their other tiles.
    """

    chunk: int
    piece: int
    rows: int
    columns: int
    by_frames: bool
    peak_bytes: int
    flops: int
    spool_bytes: int

    @property
    def note(self) -> str:
        """What is to be known of it where memory was short; else nothing."""
        cut = self.tiled or self.piece < 4
        return f"decoding {self}: a pixel's last bit may differ from that of other cuts" if cut else ""

    @property
    def tiled(self) -> bool:
        return self.rows * self.columns > 1

    def tiles(self, config: WanVaeConfig, height: int, width: int) -> tuple[Tile, ...]:
        """Of pictures of ``height`` x ``width`` latents."""
        return tiles(config, height, width, self.rows, self.columns)

    def __str__(self) -> str:
        frames = f"{self.chunk} latent frame{'s' if self.chunk > 1 else ''} at a time"
        frames += f" in pieces of {self.piece}" if self.piece < 4 else ""
        if not self.tiled:
            return f"{frames}, whole pictures"
        return (
            f"{frames}, in {self.rows} x {self.columns} tiles; {self.spool_bytes / 1e6:.0f} MB of frames wait on disk"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Way(Enum):
    """How the layers of a decoder are run (``glimt.models.wan.vae_ops``)."""

    FRAMES = "latent frames one by one"  # on a CPU
    KERNELS = "a chunk at a time by the ops of glimt_kernels"  # on a GPU
    PLAIN = "a chunk at a time by PyTorch's operations"  # on a GPU, exact


def plan_decode(config: WanVaeConfig, grid: LatentGrid, item_bytes: int, room_bytes: int, *, way: Way) -> DecodePlan:
    """The least work that fits in ``room_bytes``; where nothing fits, what needs least.

    Whole pictures if possible: tiles compute their overlap again, and what comes before attention for every tile.
    """
    made = functools.partial(_decode_plan, config, grid, item_bytes, way)
    found = [made(*cut, 1, 1) for cut in _cuts_in_time(config, grid, item_bytes, way)]
    for layout in found:
        if layout.peak_bytes <= room_bytes:
            return layout
    chunk, piece = found[-1].chunk, found[-1].piece
    rows, columns = ([n for n in _SPLITS if n <= size] for size in (grid.height, grid.width))
    finest = made(chunk, piece, rows[-1], columns[-1])
    if finest.peak_bytes > room_bytes:
        return min((*found, finest), key=lambda layout: layout.peak_bytes)
    for cut in sorted(product(rows, columns), key=lambda cut: vae_decode_flops(config, grid, *cut)):
        layout = made(chunk, piece, *cut)
        if layout.peak_bytes <= room_bytes:
            return layout
    return finest


def _cuts_in_time(config: WanVaeConfig, grid: LatentGrid, item: int, way: Way) -> tuple[tuple[int, int], ...]:
    """(chunk, piece), what is fastest first.

    Several latent frames where they go together: fewer launches, and fewer frames that are read again. More of them
    where they are small, which follows from the size alone, not from the machine, because a GPU's libraries may compute
    different chunks differently in the last bit.
    """
    if way is Way.FRAMES:
        return ((1, 4), (1, 2), (1, 1))
    whole = Box(0, grid.height, 0, grid.width)
    part = tile(config, whole, whole)
    if way is Way.PLAIN:
        several = [n for n in (3, 2) if n <= grid.frames]
        return (*((n, 4) for n in several if _plain_decode_bytes(config, part, n, item) <= _CHUNK_BYTES), (1, 4))
    if grid.frames < 3:
        return ((1, 4), (1, 2))
    together = (2, 8) if _kernel_decode_bytes(config, part, 2, 8, item) <= _CHUNK_BYTES else (2, 4)
    return tuple(dict.fromkeys((together, (2, 4), (1, 4), (1, 2))))


def _decode_plan(
    config: WanVaeConfig, grid: LatentGrid, item: int, way: Way, chunk: int, piece: int, rows: int, columns: int
) -> DecodePlan:
    part = _largest_tile(config, grid, rows, columns)
    clip = grid.pixels(config.scale_factor_temporal, config.scale_factor_spatial)
    if way is Way.PLAIN:
        peak = _plain_decode_bytes(config, part, chunk, item)
    else:
        need = _frame_decode_bytes if way is Way.FRAMES else _kernel_decode_bytes
        peak = need(config, part, chunk, piece, item)
    spool = 0
    if rows * columns > 1:
        spool = clip.frames * clip.height * clip.width * 3
        peak += 3 * config.scale_factor_temporal * chunk * clip.height * clip.width
    flops = vae_decode_flops(config, grid, rows, columns)
    return DecodePlan(chunk, piece, rows, columns, way is Way.FRAMES, peak, flops, spool)


def _largest_tile(config: WanVaeConfig, grid: LatentGrid, rows: int, columns: int) -> Tile:
    """The tile that needs most memory: the one with most rows, the one with most columns."""
    whole = Box(0, grid.height, 0, grid.width)
    parts = tiles(config, grid.height, grid.width, rows, columns)
    tallest = max(parts[::columns], key=lambda part: sum(box.height for box in part.boxes))
    widest = max(parts[:columns], key=lambda part: sum(box.width for box in part.boxes))
    core = Box(tallest.core.top, tallest.core.bottom, widest.core.left, widest.core.right)
    return tile(config, core, whole)


@dataclass(frozen=True)
class _Level:
    """One level of the decoder after attention.

    Attributes:
        a, b: channels that enter, and within. ``out``: that leave, 0 where nothing is doubled.
        blocks: residual blocks.
        factor_t: frames that one becomes.
    """

    a: int
    b: int
    out: int
    blocks: int
    factor_t: int


def _decoder_levels(config: WanVaeConfig) -> list[_Level]:
    mult = config.dim_mult[::-1]
    base, temporal = config.decoder_base_dim or config.base_dim, config.temperal_downsample[::-1]
    found = []
    for i, (a, b) in enumerate(pairwise([base * m for m in (mult[0], *mult)])):
        up = i < len(mult) - 1
        a = a // 2 if i and not config.is_residual else a
        out = (b if config.is_residual else b // 2) if up else 0
        found.append(_Level(a, b, out, config.num_res_blocks + 1, 2 if up and temporal[i] else 1))
    return found


def _frame_decode_bytes(config: WanVaeConfig, part: Tile, chunk: int, piece: int, item_bytes: int) -> int:
    levels = _decoder_levels(config)
    width, area = levels[0].a, part.whole.area
    held, peak, frames, windows = 0, 10 * width * area, 1, (config.z_dim + 4 * width) * area
    room = (_HISTORY + 1) * width * area
    for i, level in enumerate(levels):
        box, came, t, n = part.boxes[i], part.came(i), level.factor_t, min(frames, piece)
        cut = frames * level.a * came.area if box != came else 0  # let go of when the tile is cut out of it
        held += frames * level.a * box.area
        windows += (level.a + (2 * level.blocks - 1) * level.b) * box.area
        room = max(room, (_HISTORY + n) * max(level.a, level.b) * box.area)
        peak = max(peak, held + cut, held + 3 * n * level.b * box.area)
        if level.out:
            windows += level.b * box.area if t == 2 else 0
            doubled = n * level.b * box.area * (1 + t if t == 2 else 1)
            corners = 4 * level.out * (box.height + 1) * (box.width + 1)
            peak = max(peak, held + doubled + 4 * t * n * level.out * box.area + corners)
        frames = t * n
    windows += level.b * box.area
    pixels = config.out_channels * part.boxes[-1].area
    peak = max(peak, held + n * level.b * box.area) + pixels * (chunk + 1) * config.scale_factor_temporal
    return item_bytes * (_HISTORY * windows + room + peak + _prepared(config)) + _OWN_BYTES


def _prepared(config: WanVaeConfig) -> int:
    """Weights of the decoder in the order in which they are read, the phases of its upsampling in place of 3x3."""
    levels = _decoder_levels(config)
    width, last = levels[0].a, levels[-1].b
    total = config.z_dim**2 + 27 * (config.z_dim * width + 4 * width**2 + last * max(config.out_channels, 16))
    for level in levels:
        total += 27 * (level.a * level.b + (2 * level.blocks - 1) * level.b**2)
        total += level.a * level.b if level.a != level.b else 0
        total += 6 * level.b**2 if level.factor_t == 2 else 0
        total += 16 * level.b * level.out
    return total


def _kernel_decode_bytes(config: WanVaeConfig, part: Tile, chunk: int, piece: int, item_bytes: int) -> int:
    """Where kernels run, the frames before a chunk are read where they lie: all of a piece stay if they are few."""
    levels = _decoder_levels(config)
    width, area = levels[0].a, part.whole.area
    kept = _frames_held(chunk) * (config.z_dim + 4 * width) * area
    held, peak, frames = 0, 5 * chunk * width * area, chunk
    for i, level in enumerate(levels):
        box, came, n = part.boxes[i].area, part.came(i).area, min(frames, piece)
        row = n * level.b * box
        held += frames * level.a * box
        cut = frames * level.a * came if came != box else 0  # let go of when the tile is cut out of it
        before = _frames_held(n) * level.b * box  # of the convolution at work
        kept += _frames_held(n) * (level.a + (2 * level.blocks - 1) * level.b) * box
        # What the block before gave, what this one gives and its norm; and what both convolutions read, if not kept.
        rows = (3 if level.blocks > 2 else 2) + (2 if n > 2 * _KEPT else 0)
        peak = max(peak, held + cut, held + rows * row + before)
        if level.out:
            doubled = level.factor_t * row if level.factor_t == 2 else 0
            kept += before if level.factor_t == 2 else 0
            peak = max(peak, held + row + doubled + 4 * level.factor_t * n * level.out * box)
        frames = level.factor_t * n
    kept += before
    pixels = config.out_channels * chunk * config.scale_factor_temporal * part.boxes[-1].area
    folded = [16 * level.b * level.out for level in levels if level.out]
    # Folding: 3x3 in float32, 12 and 16 sums of its elements, and these in the dtype, twice.
    folding = max(folded) * (4 * (9 + 12 + 16) + 16 * 2 * item_bytes) // 16 + item_bytes * sum(folded[:-1])
    decoding = item_bytes * (kept + peak + sum(folded)) + pixels * max(2 * item_bytes, item_bytes + 4)
    return max(decoding, folding) + _OWN_BYTES


def _frames_held(count: int) -> int:
    """Of a piece of ``count`` frames, those in memory until the next one (``CausalCache.put``)."""
    return count if _KEPT <= count <= 2 * _KEPT else _KEPT


def _plain_decode_bytes(config: WanVaeConfig, part: Tile, chunk: int, item_bytes: int) -> int:
    """PyTorch's operations: a norm in float32 beside its input, the frames before joined to those of the chunk."""
    levels = _decoder_levels(config)
    width, area = levels[0].a, part.whole.area
    kept = _KEPT * (config.z_dim + 4 * width) * area
    wide, frames = chunk * 12 * width * area, chunk
    peak = item_bytes * wide
    for i, level in enumerate(levels):
        box = part.boxes[i].area
        kept += _KEPT * (level.a + (2 * level.blocks - 1) * level.b) * box
        start = frames * level.a * box if config.is_residual else 0
        peak = max(peak, item_bytes * (start + (4 * frames + _KEPT) * level.b * box + frames * level.b * box))
        if level.out:
            if level.factor_t == 2:
                kept += _KEPT * level.b * box
                frames *= 2
            doubled = 4 * frames * box
            peak = max(peak, item_bytes * (start + frames * level.b * box + doubled * (level.b + level.out)))
    kept += _KEPT * level.b * box
    return item_bytes * kept + peak + 4 * 3 * frames * config.scale_factor_spatial**2 * part.core.area + _OWN_BYTES


def encode_bytes(config: WanVaeConfig, clip: PixelGrid, item_bytes: int, *, by_frames: bool) -> int:
    """Of encoding a clip, weights not among it."""
    walk = _EncoderWalk(config, clip, config.scale_factor_temporal)
    held, peak = walk.frame_way() if by_frames else walk.chunk_way()
    pixels = 3 * clip.height * clip.width * (2 * config.scale_factor_temporal + 1)
    return item_bytes * (held + peak + pixels) + 2 * _OWN_BYTES


class _EncoderWalk:
    """Elements that encoding holds for the whole clip, and the most that are on their way at once."""

    def __init__(self, config: WanVaeConfig, clip: PixelGrid, frames: int) -> None:
        side = config.patch_size or 1
        self._config, self._frames = config, frames
        self._area = clip.height // side * (clip.width // side)
        self._dims = [config.base_dim * m for m in (1, *config.dim_mult)]

    def frame_way(self) -> tuple[int, int]:
        config, area, dims, n = self._config, self._area, self._dims, self._frames
        windows, weights = config.in_channels * area, 27 * config.in_channels * dims[0]
        entered = n * dims[0] * area  # alive until the first block has passed
        way, peak, room = entered, 0, 0
        for i, (a, b) in enumerate(pairwise(dims)):
            for j in range(config.num_res_blocks):
                c = b if j else a
                windows += (c + b) * area
                room = max(room, (_HISTORY + n) * max(c, b) * area)
                weights += 27 * (c + b) * b
                peak = max(peak, way + (3 if c != b else 2) * n * b * area)
                way += 0 if config.is_residual else n * b * area
                way -= entered if i == j == 0 and not config.is_residual else 0
            start = n * a * area
            if i < len(config.dim_mult) - 1:
                peak = max(peak, way + (2 if config.is_residual else 1) * n * b * area + n * b * area // 4)
                area //= 4
                if config.temperal_downsample[i]:
                    windows += b * area
                    n = max(1, n // 2)
            way += n * b * area
            peak = max(peak, way + 2 * start if config.is_residual else way)
            way -= entered if i == 0 and config.is_residual else 0
        last = dims[-1]
        windows += 5 * last * area
        weights += 27 * (4 * last * last + 2 * config.z_dim * last)
        return _HISTORY * windows + room + weights, max(peak, way + 10 * last * area)

    def chunk_way(self) -> tuple[int, int]:
        config, area, dims, frames = self._config, self._area, self._dims, self._frames
        kept, peak = _KEPT * config.in_channels * area, 0
        for i, (a, b) in enumerate(pairwise(dims)):
            kept += _KEPT * (a + (2 * config.num_res_blocks - 1) * b) * area
            peak = max(peak, (6 * frames + _KEPT) * max(a, b) * area)
            if i < len(config.dim_mult) - 1:
                area //= 4
                frames = max(1, frames // 2) if config.temperal_downsample[i] else frames
                kept += b * area
        kept += _KEPT * 5 * dims[-1] * area
        return kept, max(peak, 12 * frames * dims[-1] * area)

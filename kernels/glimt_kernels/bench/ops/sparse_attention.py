"""sparse_attention: self-attention over tiles of the video, each seeing the window of 3 x 3 x 3 tiles around it.

Eager is PyTorch's dense attention under the same mask as booleans: what a model does without a sparse kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels import Tiling, sliding_tile
from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Workload
from glimt_kernels.sparse_attention import reference

BLOCK, WINDOW = 128, (3, 3, 3)
# Rows of the result that are compared with float64: all of them would be N^2 numbers.
CHECKED = 256


def tile_of(grid: tuple[int, int, int], block: int) -> tuple[int, int, int]:
    """The tile that leaves the fewest empty places, the most even one among equals."""
    sizes = [(t, y, x) for t in range(1, 9) for y in range(2, 17) for x in range(2, 17) if t * y * x <= block]
    held = [size for size in sizes if all(a <= b for a, b in zip(size, grid, strict=True))]
    return min(held, key=lambda size: (Tiling(grid, size, block).places, max(size) / min(size[1:])))


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
) -> Tensor:
    seen = reference.token_mask(indptr, indices, lengths, block, q.shape[1], k.shape[1])
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale).transpose(1, 2)


def eager_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor | None,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """PyTorch's attention keeps its log-sum-exp to itself: by products, a head at a time, whose logits fit."""
    hidden = ~reference.token_mask(indptr, indices, lengths, block, q.shape[1], k.shape[1])
    out, lse = torch.empty_like(q), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    for head in range(q.shape[2]):
        logits = q[:, :, head] @ k[:, :, head].transpose(1, 2) * scale
        logits.masked_fill_(hidden[:, head % hidden.shape[1]], -math.inf)
        lse[:, head] = logits.float().logsumexp(-1)
        out[:, :, head] = torch.softmax(logits, -1) @ v[:, :, head]
    return out, lse


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    tiling = Tiling(shape.grid, tile_of(shape.grid, BLOCK), BLOCK)
    mask = sliding_tile(tiling, WINDOW, device)
    size = 1, tiling.tokens, shape.heads, shape.head_dim
    q, k, v = (tiling.to_tiles(torch.randn(size, device=device).to(dtype)) for _ in range(3))
    pairs = mask.density * q.shape[1] * k.shape[1]
    rows = min(CHECKED, q.shape[1])

    def part(found: Sequence[Tensor]) -> Sequence[Tensor]:
        return [x[:, :rows] for x in found]

    def exact() -> list[Tensor]:
        lists = mask.indptr[..., : math.ceil(rows / BLOCK) + 1]
        used = mask.indices[: int(lists[0, 0, -1])]
        wide = q[:, :rows].double(), k.double(), v.double()
        return [reference.sparse_attention(*wide, lists, used, mask.lengths, BLOCK, shape.head_dim**-0.5)]

    return Workload(
        op="sparse_attention",
        shape=name,
        args=(q, k, v, mask.indptr, mask.indices, mask.lengths, BLOCK, shape.head_dim**-0.5),
        eager=eager,
        flops=4 * pairs * shape.width,
        num_bytes=4 * q.nbytes,
        exact=exact,
        part=part,
        kind="matrix",
    )


def lse(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    made = workload(name, shape, dtype, device)
    q, k, v, indptr, indices, lengths, block, scale = made.args
    rows = min(CHECKED, q.shape[1])

    def exact() -> list[Tensor]:
        lists = indptr[..., : math.ceil(rows / block) + 1]
        wide = q[:, :rows].double(), k.double(), v.double()
        used = indices[: int(lists[0, 0, -1])]
        return list(reference.sparse_attention_lse(*wide, lists, used, lengths, block, scale))

    return replace(
        made,
        op="sparse_attention_lse",
        eager=eager_lse,
        num_bytes=made.num_bytes + 4 * q.shape[1] * shape.heads,
        exact=exact,
        part=lambda found: [found[0][:, :rows], found[1][..., :rows]],
    )

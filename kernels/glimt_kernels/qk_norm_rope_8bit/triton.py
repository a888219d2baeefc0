"""qk_norm_rope_8bit in Triton: one program a block of tokens of the queries or of the keys, head after head.

    full width:  all heads of the block -> mean square of each token
    each head:   tile [block, head_dim] -> (mean square of each token's head) -> * weight -> pairs turned -> - mean of k
                 -> largest absolute value -> scale, levels

A block's scale of a head needs every token of the block, and the full-width norm of a token needs every head, so that
form reads its block twice; the second time from L2 if the blocks in flight fit there. The angles are read once for all
heads, and the next head's tile is asked for before the present one is worked on; where heads have angles of their own,
these are asked for together with the tile instead. Two neighbouring channels are loaded as one word and stored as one,
so that pairs never have to change threads.

Bytes, X = B N D elements of q: 2 (2 X + X) for each head's norm, 2 (4 X + X) at most over the full width (bf16 in).
Launch shape in :func:`warps`; each shipped one is in :data:`BUILDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.eight_bit.triton import FORMAT_ARCHS, POINTERS, levels, magnitude, scale_of
from glimt_kernels.outputs import each, place
from glimt_kernels.triton_env import VERSION, Build, jit, on_device_of, power_of_2, tl


@jit
def _vector(at, head_dim: tl.constexpr, pairs: tl.constexpr, HALF: tl.constexpr):
    """The two channels of each pair of one head's vector that all tokens share, in float32."""
    if HALF:
        pair = tl.arange(0, pairs)[None, :]
        a = tl.load(at + pair, mask=pair < head_dim // 2, other=0.0).to(tl.float32)
        b = tl.load(at + (head_dim // 2 + pair), mask=pair < head_dim // 2, other=0.0).to(tl.float32)
    else:
        channel = tl.arange(0, 2 * pairs)[None, :]
        whole = tl.load(at + channel, mask=channel < head_dim, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(whole, [1, pairs, 2]))
    return a, b


@jit
def _load(at, halves, inside, HALF: tl.constexpr):
    """A tile as it is in memory: words of two neighbouring channels, or its two halves."""
    if HALF:
        first = tl.load(at, mask=inside, other=0.0)
        second = tl.load(at + halves, mask=inside, other=0.0)
    else:
        first = tl.load(at, mask=inside, other=0)
        second = first
    return first, second


@jit
def _split(first, second, dtype: tl.constexpr, HALF: tl.constexpr):
    """The two channels of each pair, in float32."""
    if HALF:
        a, b = first.to(tl.float32), second.to(tl.float32)
    elif dtype.primitive_bitwidth == 32:
        a = first.to(tl.int32).to(tl.float32, bitcast=True)
        b = (first >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        a = first.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        b = (first >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    return a, b


@jit
def _words(pointer, HALF: tl.constexpr):
    """A pointer to pairs of neighbouring channels, if they are to be taken as one."""
    if HALF:
        found = pointer
    elif pointer.dtype.element_ty.primitive_bitwidth == 32:
        found = pointer.to(tl.pointer_type(tl.int64), bitcast=True)
    elif pointer.dtype.element_ty.primitive_bitwidth == 16:
        found = pointer.to(tl.pointer_type(tl.int32), bitcast=True)
    else:
        found = pointer.to(tl.pointer_type(tl.int16), bitcast=True)
    return found


@jit
def _block(
    x,
    weight,
    cos,
    sin,
    mean,
    order,
    out,
    scales,
    sample,
    block,
    blocks,
    tokens,
    places,
    x_sample,
    x_token,
    x_head,
    table_token,
    eps,
    factor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    PER_HEAD: tl.constexpr,
    HALF: tl.constexpr,
    TABLE_HEADS: tl.constexpr,
    CENTRED: tl.constexpr,
    ORDERED: tl.constexpr,
    AHEAD: tl.constexpr,
):
    PAIRS: tl.constexpr = HEAD_DIM // 2
    place = block * BLOCK + tl.arange(0, BLOCK)
    written = (place < places)[:, None]
    if ORDERED:
        token = tl.load(order + place, mask=place < places, other=-1)
        present = ((token >= 0) & (token < tokens))[:, None]
    else:
        token = place
        present = written
    token = token.to(tl.int64)[:, None]
    pair = tl.arange(0, PAIRS_BLOCK)[None, :]
    # Neighbouring channels are loaded and stored as one word, so that everything here is a tile [block, pairs].
    UNIT: tl.constexpr = 1 if HALF else 2
    dtype: tl.constexpr = x.dtype.element_ty
    at = _words(x + sample * x_sample, HALF) + token * (x_token // UNIT) + pair
    inside = present & (pair < PAIRS)
    if not PER_HEAD:
        squares = tl.zeros([BLOCK, PAIRS_BLOCK], tl.float32)
        for head in range(HEADS):
            first, second = _load(at + head * (x_head // UNIT), PAIRS, inside, HALF)
            a, b = _split(first, second, dtype, HALF)
            squares += a * a + b * b
        mean_square = tl.sum(squares, 1)[:, None] / (HEADS * HEAD_DIM)
        inverse = 1.0 / tl.sqrt(mean_square + eps)
    if not TABLE_HEADS:
        c = tl.load(cos + token * table_token + pair, mask=present & (pair < PAIRS), other=0.0).to(tl.float32)
        s = tl.load(sin + token * table_token + pair, mask=present & (pair < PAIRS), other=0.0).to(tl.float32)
        if not PER_HEAD:  # the norm goes into the angles, once for all heads
            c, s = c * inverse, s * inverse
    to = _words(out, HALF) + (sample * places + place.to(tl.int64)[:, None]) * (HEADS * HEAD_DIM // UNIT) + pair
    if AHEAD:
        first, second = _load(at, PAIRS, inside, HALF)
    for head in range(HEADS):
        if AHEAD:
            a, b = _split(first, second, dtype, HALF)
            first, second = _load(at + (head + 1) * (x_head // UNIT), PAIRS, inside & (head + 1 < HEADS), HALF)
        else:
            first, second = _load(at + head * (x_head // UNIT), PAIRS, inside, HALF)
            a, b = _split(first, second, dtype, HALF)
        if TABLE_HEADS:
            angle = token * table_token + (head * PAIRS + pair)
            c = tl.load(cos + angle, mask=present & (pair < PAIRS), other=0.0).to(tl.float32)
            s = tl.load(sin + angle, mask=present & (pair < PAIRS), other=0.0).to(tl.float32)
        if PER_HEAD:
            mean_square = tl.sum(a * a + b * b, 1)[:, None] / HEAD_DIM
            inverse = 1.0 / tl.sqrt(mean_square + eps)
            weight_a, weight_b = _vector(weight, HEAD_DIM, PAIRS_BLOCK, HALF)
        else:
            weight_a, weight_b = _vector(weight + head * HEAD_DIM, HEAD_DIM, PAIRS_BLOCK, HALF)
        a, b = a * weight_a, b * weight_b
        if PER_HEAD or TABLE_HEADS:
            a, b = a * inverse, b * inverse
        a, b = a * c - b * s, a * s + b * c
        if CENTRED:
            mean_a, mean_b = _vector(mean + (sample * HEADS + head) * HEAD_DIM, HEAD_DIM, PAIRS_BLOCK, HALF)
            a, b = tl.where(present, a - mean_a, 0.0), tl.where(present, b - mean_b, 0.0)
        amax = tl.max(tl.maximum(tl.abs(a), tl.abs(b)))
        # That passes over a NaN: what was NaN or infinite in a token makes the scale NaN. (To compare magnitudes as
        # integers would show it too, but takes registers that sm_100 has not.)
        scale = scale_of(magnitude(amax), out) + tl.sum(mean_square * 0.0)
        level_a, level_b = levels(a, 1.0 / scale, out), levels(b, 1.0 / scale, out)
        if HALF:
            tl.store(to + head * HEAD_DIM, level_a, mask=written & (pair < PAIRS))
            tl.store(to + (head * HEAD_DIM + PAIRS), level_b, mask=written & (pair < PAIRS))
        else:
            low = level_a.to(tl.uint8, bitcast=True).to(tl.int16)
            high = level_b.to(tl.uint8, bitcast=True).to(tl.int16)
            tl.store(to + head * PAIRS, low | (high << 8), mask=written & (pair < PAIRS))
        tl.store(scales + (sample * HEADS + head) * blocks + block, scale * factor)


@jit
def _kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    k_mean,
    order,
    q_out,
    k_out,
    q_scales,
    k_scales,
    blocks,
    tokens,
    places,
    q_sample,
    q_token,
    q_head,
    k_sample,
    k_token,
    k_head,
    table_token,
    eps,
    q_factor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    PER_HEAD: tl.constexpr,
    HALF: tl.constexpr,
    TABLE_HEADS: tl.constexpr,
    CENTRED: tl.constexpr,
    ORDERED: tl.constexpr,
    AHEAD: tl.constexpr,
):
    row = tl.program_id(0)
    sample, block = (row // blocks).to(tl.int64), row % blocks
    if tl.program_id(1) == 0:
        _block(
            q, q_weight, cos, sin, k_mean, order, q_out, q_scales, sample, block, blocks, tokens, places,
            q_sample, q_token, q_head, table_token, eps, q_factor,
            HEADS, HEAD_DIM, BLOCK, PAIRS_BLOCK, PER_HEAD, HALF, TABLE_HEADS, False, ORDERED, AHEAD,
        )  # fmt: skip
    else:
        _block(
            k, k_weight, cos, sin, k_mean, order, k_out, k_scales, sample, block, blocks, tokens, places,
            k_sample, k_token, k_head, table_token, eps, 1.0,
            HEADS, HEAD_DIM, BLOCK, PAIRS_BLOCK, PER_HEAD, HALF, TABLE_HEADS, CENTRED, ORDERED, AHEAD,
        )  # fmt: skip


def warps(block: int, head_dim: int) -> int:
    """Warps of a program: 32 elements of a head's tile a thread."""
    return min(16, max(1, block * power_of_2(head_dim) // 1024))


def ahead(per_head: bool, table_heads: bool, dtype: torch.dtype) -> bool:
    """Whether the next head's tile is asked for before the present one is worked on, which takes its registers.

    Not beside angles of heads. Triton before 3.7 spilled 8 bytes on sm_90 and sm_120 for fp8 beside each head's norm.
    """
    return not table_heads and not (per_head and dtype == torch.float8_e4m3fn and VERSION < (3, 7))


def _pairs_together(x: Tensor) -> Tensor:
    """``x`` itself if its channels lie together and every pair of them where a word can be."""
    as_words = x.data_ptr() % (2 * x.element_size()) == 0 and all(step % 2 == 0 for step in x.stride()[:3])
    return x if x.stride(3) == 1 and as_words else x.contiguous()


def qk_norm_rope_8bit(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool,
    pairs: str,
    dtype: torch.dtype,
    block: int,
    q_factor: float,
    k_mean: Tensor | None,
    order: Tensor | None,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k = _pairs_together(q), _pairs_together(k)
    q_weight, k_weight, cos, sin = q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(), sin.contiguous()
    samples, tokens, heads, head_dim = q.shape
    places = tokens if order is None else order.shape[0]
    blocks = -(-places // block)
    given = each(out, 4)
    outs = [place(one, (samples, places, heads, head_dim), dtype, q.device) for one in given[::2]]
    scales = [place(one, (samples, heads, blocks), torch.float32, q.device) for one in given[1::2]]
    if outs[0].numel():
        with on_device_of(q):
            _kernel[(samples * blocks, 2)](
                q,
                k,
                q_weight,
                k_weight,
                cos,
                sin,
                k_weight if k_mean is None else k_mean.contiguous(),
                cos if order is None else order.contiguous(),
                *outs,
                *scales,
                blocks,
                tokens,
                places,
                *q.stride()[:3],
                *k.stride()[:3],
                cos.stride(0),
                eps,
                q_factor,
                HEADS=heads,
                HEAD_DIM=head_dim,
                BLOCK=block,
                PAIRS_BLOCK=power_of_2(head_dim // 2),
                PER_HEAD=per_head,
                HALF=pairs == "half",
                TABLE_HEADS=cos.dim() == 3,
                CENTRED=k_mean is not None,
                ORDERED=order is not None,
                AHEAD=ahead(per_head, cos.dim() == 3, dtype),
                num_warps=warps(block, head_dim),
            )
    return outs[0], scales[0], outs[1], scales[1]


def _build(
    heads: int, head_dim: int, dtype: torch.dtype, block: int, form: tuple[bool, bool, bool], ordered: bool
) -> Build:
    per_head, half, table_heads = form
    pointers = dict.fromkeys(("q", "k"), "*bf16") | dict.fromkeys(("q_out", "k_out"), POINTERS[dtype])
    tables = dict.fromkeys(("q_weight", "k_weight", "cos", "sin", "k_mean", "q_scales", "k_scales"), "*fp32")
    steps = {f"{name}_{axis}": "i64" for name in "qk" for axis in ("sample", "token", "head")}
    counts = dict.fromkeys(("blocks", "tokens", "places"), "i32")
    kind = f"{'heads' if per_head else 'width'} {'half' if half else 'interleaved'}"
    return Build(
        op="qk_norm_rope_8bit",
        case=f"bf16 {heads}x{head_dim} {kind}{' angles of heads' if table_heads else ''} "
        f"{'int8' if dtype == torch.int8 else 'fp8'} block {block}{' ordered' if ordered else ''}",
        kernel=_kernel,
        signature={
            **pointers,
            **tables,
            **counts,
            **steps,
            "order": "*i32",
            "table_token": "i64",
            "eps": "fp32",
            "q_factor": "fp32",
        },
        constants={
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "BLOCK": block,
            "PAIRS_BLOCK": power_of_2(head_dim // 2),
            "PER_HEAD": per_head,
            "HALF": half,
            "TABLE_HEADS": table_heads,
            "CENTRED": True,
            "ORDERED": ordered,
            "AHEAD": ahead(per_head, table_heads, dtype),
        },
        num_warps=warps(block, head_dim),
        archs=FORMAT_ARCHS[dtype],
        wide=True,
    )


_WAN, _LTX, _LTX_2, _HUNYUAN = (False, False, False), (False, False, True), (False, True, True), (True, False, False)
BUILDS = [
    _build(heads, head_dim, dtype, block, form, ordered)
    for heads, head_dim, form, block, ordered in (
        (12, 128, _WAN, 128, False),
        (12, 128, _WAN, 64, True),
        (40, 128, _WAN, 128, False),
        (40, 128, _WAN, 64, True),
        (32, 64, _LTX, 128, False),
        (32, 128, _LTX_2, 128, False),
        (24, 128, _HUNYUAN, 128, False),
        (24, 128, _HUNYUAN, 64, True),
    )
    for dtype in (torch.int8, torch.float8_e4m3fn)
]

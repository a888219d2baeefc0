"""qk_norm_rope in Triton: one program a token, its queries and its keys in registers, read once and written once.

    q row, k row -> mean square (of the token, or of each head) -> * weight -> pairs turned -> stored

A row is a tile [heads, head_dim]. Interleaved pairs lie in one thread's registers, so that turning them moves nothing;
of pairs that are half a head apart the two halves are loaded as two tiles. Both rows are loaded before the first sum:
a barrier stands in each sum, and loads do not move across it.

Bytes, X = B N D elements: 4 X in all, and the tables from L2. Nothing else moves, so the floor is the copy rate.
Launch shape in :func:`warps`; each shipped one is in :data:`BUILDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from glimt_kernels.outputs import each, place
from glimt_kernels.triton_env import Build, jit, on_device_of, power_of_2, tl


@jit
def _load(x, first, second, inside, whole, inside_whole, HALF: tl.constexpr):
    """The two channels of each pair, in float32."""
    if HALF:
        a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x + second, mask=inside, other=0.0).to(tl.float32)
    else:
        value = tl.load(x + whole, mask=inside_whole, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(value, [inside.shape[0], inside.shape[1], 2]))
    return a, b


@jit
def _store(out, a, b, first, second, inside, whole, inside_whole, HALF: tl.constexpr):
    narrow = out.dtype.element_ty
    if HALF:
        tl.store(out + first, a.to(narrow), mask=inside)
        tl.store(out + second, b.to(narrow), mask=inside)
    else:
        pairs = tl.join(a.to(narrow), b.to(narrow))
        tl.store(out + whole, tl.reshape(pairs, [inside.shape[0], 2 * inside.shape[1]]), mask=inside_whole)


@jit
def _inverse_rms(a, b, eps, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PER_HEAD: tl.constexpr):
    if PER_HEAD:
        inverse = (1.0 / tl.sqrt(tl.sum(a * a + b * b, 1) / HEAD_DIM + eps))[:, None]
    else:  # over both axes at once: a thread adds up all of its own before it asks others
        inverse = 1.0 / tl.sqrt(tl.sum(a * a + b * b) / (HEADS * HEAD_DIM) + eps)
    return inverse


@jit
def _kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    order,
    q_out,
    k_out,
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
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    PER_HEAD: tl.constexpr,
    HALF: tl.constexpr,
    TABLE_HEADS: tl.constexpr,
    ORDERED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // places, row % places
    PAIRS: tl.constexpr = HEAD_DIM // 2
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    pair = tl.arange(0, PAIRS_BLOCK)[None, :]
    channel = tl.arange(0, 2 * PAIRS_BLOCK)[None, :]
    inside = (head < HEADS) & (pair < PAIRS)
    inside_whole = (head < HEADS) & (channel < HEAD_DIM)
    written, written_whole = inside, inside_whole
    if ORDERED:
        token = tl.load(order + token).to(tl.int64)
        present = (token >= 0) & (token < tokens)
        eps = tl.where(present, eps, 1.0)  # an empty place reads zeros, and without an eps 0 / 0 would not stay one
        inside, inside_whole = inside & present, inside_whole & present
    # Of a head's weights and of the outputs, which are contiguous; the inputs' heads may lie anywhere.
    dense, dense_whole = head * HEAD_DIM + pair, head * HEAD_DIM + channel
    q += sample * q_sample + token * q_token
    k += sample * k_sample + token * k_token
    at, at_whole = head * q_head + pair, head * q_head + channel
    q_a, q_b = _load(q, at, at + PAIRS, inside, at_whole, inside_whole, HALF)
    at, at_whole = head * k_head + pair, head * k_head + channel
    k_a, k_b = _load(k, at, at + PAIRS, inside, at_whole, inside_whole, HALF)
    angle = token * table_token + (head * PAIRS + pair if TABLE_HEADS else pair)
    inside_table = inside if TABLE_HEADS else pair < PAIRS
    if ORDERED:
        inside_table = inside_table & present
    c = tl.load(cos + angle, mask=inside_table, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside_table, other=0.0).to(tl.float32)
    if PER_HEAD:
        of_pair, of_whole = tl.broadcast_to(pair, inside.shape), tl.broadcast_to(channel, inside_whole.shape)
    else:
        of_pair, of_whole = dense, dense_whole
    weight_a, weight_b = _load(q_weight, of_pair, of_pair + PAIRS, inside, of_whole, inside_whole, HALF)
    inverse = _inverse_rms(q_a, q_b, eps, HEADS, HEAD_DIM, PER_HEAD)
    a, b = q_a * inverse * weight_a, q_b * inverse * weight_b
    q_out += row * HEADS * HEAD_DIM
    _store(q_out, a * c - b * s, a * s + b * c, dense, dense + PAIRS, written, dense_whole, written_whole, HALF)
    weight_a, weight_b = _load(k_weight, of_pair, of_pair + PAIRS, inside, of_whole, inside_whole, HALF)
    inverse = _inverse_rms(k_a, k_b, eps, HEADS, HEAD_DIM, PER_HEAD)
    a, b = k_a * inverse * weight_a, k_b * inverse * weight_b
    k_out += row * HEADS * HEAD_DIM
    _store(k_out, a * c - b * s, a * s + b * c, dense, dense + PAIRS, written, dense_whole, written_whole, HALF)


def blocks(heads: int, head_dim: int) -> tuple[int, int]:
    """Heads and pairs of the tile that holds a token."""
    return power_of_2(heads), power_of_2(head_dim // 2)


def warps(heads: int, head_dim: int, half: bool, table_heads: bool) -> int:
    """Warps of a program: 16 elements of the queries and 16 of the keys a thread.

    Of interleaved pairs with angles of their own for each head 8, for the angles take as many registers again: with 16
    ptxas spills on sm_100 and sm_120. Of halves always 16: 8 would be two loads of 4, not of 128 bits.
    """
    head_block, pair_block = blocks(heads, head_dim)
    return min(16, max(1, 2 * head_block * pair_block // (256 if table_heads and not half else 512)))


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _steps(x: Tensor) -> tuple[int, int, int]:
    """Elements from sample to sample, token to token and head to head."""
    return x.stride(0), x.stride(1), x.stride(2)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    per_head: bool = False,
    pairs: str = "interleaved",
    order: Tensor | None = None,
    out: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    q, k = _channels_together(q), _channels_together(k)
    q_weight, k_weight, cos, sin = q_weight.contiguous(), k_weight.contiguous(), cos.contiguous(), sin.contiguous()
    samples, tokens, heads, head_dim = q.shape
    q_given, k_given = each(out, 2)
    places = tokens if order is None else order.shape[0]
    shape = samples, places, heads, head_dim
    q_out, k_out = place(q_given, shape, q.dtype, q.device), place(k_given, shape, k.dtype, k.device)
    head_block, pair_block = blocks(heads, head_dim)
    if q_out.numel():
        with on_device_of(q):
            _kernel[(samples * places,)](
                q,
                k,
                q_weight,
                k_weight,
                cos,
                sin,
                cos if order is None else order.contiguous(),
                q_out,
                k_out,
                tokens,
                places,
                *_steps(q),
                *_steps(k),
                cos.stride(0),
                eps,
                HEADS=heads,
                HEAD_DIM=head_dim,
                HEADS_BLOCK=head_block,
                PAIRS_BLOCK=pair_block,
                PER_HEAD=per_head,
                HALF=pairs == "half",
                TABLE_HEADS=cos.dim() == 3,
                ORDERED=order is not None,
                num_warps=warps(heads, head_dim, pairs == "half", cos.dim() == 3),
            )
    return q_out, k_out


def build(
    heads: int, head_dim: int, form: tuple[bool, bool, bool], dtype: str = "bf16", *, ordered: bool = False
) -> Build:
    """``form``: norm of each head, pairs of halves, angles of heads."""
    per_head, half, table_heads = form
    pointers = dict.fromkeys(("q", "k", "q_out", "k_out"), f"*{dtype}")
    tables = dict.fromkeys(("q_weight", "k_weight", "cos", "sin"), "*fp32")
    steps = {f"{name}_{axis}": "i64" for name in "qk" for axis in ("sample", "token", "head")}
    head_block, pair_block = blocks(heads, head_dim)
    kind = f"{'heads' if per_head else 'width'} {'half' if half else 'interleaved'}"
    more = f"{' angles of heads' if table_heads else ''}{' ordered' if ordered else ''}"
    return Build(
        op="qk_norm_rope",
        case=f"{dtype} {heads}x{head_dim} {kind}{more}",
        kernel=_kernel,
        signature={
            **pointers,
            **tables,
            "order": "*i32",
            **dict.fromkeys(("tokens", "places"), "i32"),
            **steps,
            "table_token": "i64",
            "eps": "fp32",
        },
        constants={
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "HEADS_BLOCK": head_block,
            "PAIRS_BLOCK": pair_block,
            "PER_HEAD": per_head,
            "HALF": half,
            "TABLE_HEADS": table_heads,
            "ORDERED": ordered,
        },
        num_warps=warps(heads, head_dim, half, table_heads),
        wide=True,
    )


WAN, _LTX, _LTX_2 = (False, False, False), (False, False, True), (False, True, True)
_HUNYUAN, _HUNYUAN_15 = (True, False, False), (True, True, False)
BUILDS = [
    build(12, 128, WAN),  # 1.3B
    build(24, 128, WAN),  # 5B
    build(40, 128, WAN),  # 14B
    build(32, 64, _LTX),  # 2B
    build(32, 128, _LTX),  # 13B
    build(32, 128, _LTX_2),
    build(24, 128, _HUNYUAN),
    build(16, 128, _HUNYUAN_15),
    *(build(40, 128, WAN, dtype) for dtype in ("fp16", "fp32")),
    build(40, 128, WAN, ordered=True),
    build(24, 128, _HUNYUAN, ordered=True),
]

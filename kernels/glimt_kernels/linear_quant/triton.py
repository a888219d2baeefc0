"""linear_w8a8, linear_w8 and quantize_rows in Triton.

One matrix kernel: tiles of the output, K in steps, then bias, GELU, gate and residual on the accumulators, which saves
writing and reading the product once for each of them. What differs is the operands of the matrix instruction:

    int8          x int8, weight int8                       IMMA, IGMMA
    fp8           x e4m3, weight e4m3                       QMMA, QGMMA, UTCQMMA
    half, float   x as it is, weight decoded to its dtype   HMMA, HGMMA, UTCHMMA
                  (the plain linear layer, ../linear: weight as it is, no scales)
    (sm_80, 86)   e4m3 times e4m3, both decoded to fp16: every e4m3 number is one, so the products are the same

Launch shapes in tiles.py; each shipped one is in :data:`BUILDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.linear_quant import tiles
from glimt_kernels.linear_quant.quantize import BLOCK, KINDS
from glimt_kernels.linear_quant.reference import default_dtype
from glimt_kernels.outputs import each, place
from glimt_kernels.triton_env import jit, last_together, on_device_of, steps, tl


@jit
def _decode_e4m3(byte, dtype: tl.constexpr):
    """Bytes (int8) of e4m3 as fp16, bf16 or fp32, exactly: subnormals, zeros of both signs, NaN.

    Exponent and mantissa are put where the wider format has its own, which makes the number too small by a power of
    two (the biases' difference) whether it is subnormal or not; a product puts that right. Of the magnitudes only
    0x7f, NaN, carries into the next bit when 1 is added.
    """
    bits = byte.to(tl.int16)  # the sign is now in the upper nine bits
    if dtype == tl.float16:
        word = (bits << 7) & -0x4001
        word |= (word + 0x80) & 0x4000
        value = word.to(tl.float16, bitcast=True) * 256.0
    else:
        word = (bits << 4) & -0x7810
        word += ((word + 0x10) & 0x800) * 15
        if dtype == tl.bfloat16:
            value = word.to(tl.bfloat16, bitcast=True) * 1.329227995784916e36  # 2 ** 120
        else:
            value = (word.to(tl.int32) << 16).to(tl.float32, bitcast=True) * 1.329227995784916e36
    return value


@jit
def _encode_e4m3(value):
    """float32 within 448 as bytes (int8) of e4m3, to nearest even."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Subnormals are multiples of 2 ** -9: the sum is rounded to integers, which are its last bits.
    small = (tl.abs(value) * 512.0 + 12582912.0).to(tl.int32, bitcast=True) & 0xF
    code = tl.where(magnitude < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.int8)


@jit
def _quantize(
    x,
    data,
    scales,
    x_row,
    count,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TOP: tl.constexpr,
    SMALLEST: tl.constexpr,
    INT8: tl.constexpr,
    NATIVE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < WIDTH
    value = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    # Compared as integers, NaN is the largest magnitude and so comes through.
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
    largest = tl.where(largest < SMALLEST, SMALLEST, largest)
    value *= tl.div_rn(tl.full([GROUPS], TOP, tl.float32), largest)[:, None]
    value = tl.where(value == value, value, 0.0)
    value = tl.minimum(tl.maximum(value, -TOP), TOP)
    if INT8:
        code = ((value + 12582912.0) - 12582912.0).to(tl.int8)
    elif NATIVE:
        code = value.to(tl.float8e4nv).to(tl.int8, bitcast=True)
    else:
        code = _encode_e4m3(value)
    tl.store(data + row * WIDTH + column, code, mask=inside)
    tl.store(scales + row * count + group, largest * (1.0 / TOP), mask=group < count)


@jit
def _finish(
    value,
    row,
    column,
    x_scales,
    weight_scales,
    bias,
    gate,
    residual,
    out,
    tokens,
    N,
    gate_token,
    residual_token,
    SCALED: tl.constexpr,
    X8: tl.constexpr,
    BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Scales, bias, GELU, gate and residual on accumulators of the given rows (of one sample) and columns."""
    in_row, in_column = row < tokens, column < N
    inside = in_row[:, None] & in_column[None, :]
    at = row.to(tl.int64)[:, None]
    if SCALED and not BLOCKS:
        value *= tl.load(weight_scales + column, mask=in_column, other=0.0)[None, :]
        if X8:
            value *= tl.load(x_scales + row, mask=in_row, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias + column, mask=in_column, other=0.0).to(tl.float32)[None, :]
    if GELU == 1:
        # v (1 + tanh(u)) / 2 = v / (1 + exp(-2 u)) with u = sqrt(2 / pi) (v + 0.044715 v^3); log2(e) folded in.
        exponent = -2.302208198 * value * (1.0 + 0.044715 * value * value)
        value = value / (1.0 + tl.exp2(exponent))
    elif GELU == 2:
        value *= 0.5 + 0.5 * tl.erf(value * 0.7071067811865476)
    if GATE == 1:
        value *= tl.load(gate + column, mask=in_column, other=0.0).to(tl.float32)[None, :]
    elif GATE == 2:
        value *= tl.load(gate + at * gate_token + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at * residual_token + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at * N + column[None, :], value.to(out.dtype.element_ty), mask=inside)


@jit
def matmul(
    x,
    x_scales,
    weight,
    weight_scales,
    bias,
    gate,
    residual,
    out,
    samples,
    tokens,
    N,
    K,
    x_sample,
    x_token,
    weight_row,
    gate_sample,
    gate_token,
    residual_sample,
    residual_token,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    K_STEP: tl.constexpr,
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    X8: tl.constexpr,
    DOT: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCKS: tl.constexpr,
    FEW_BITS: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    # Eight tiles of rows share the columns' weights while these are in the second-level cache.
    program = tl.program_id(0)
    per_sample, across = tl.cdiv(tokens, M_TILE), tl.cdiv(N, N_TILE)
    down = samples * per_sample
    first = program // (8 * across) * 8
    height = min(down - first, 8)
    m_tile = first + program % (8 * across) % height
    n_tile = program % (8 * across) // height
    sample = (m_tile // per_sample).to(tl.int64)
    row = m_tile % per_sample * M_TILE + tl.arange(0, M_TILE)
    column = n_tile * N_TILE + tl.arange(0, N_TILE)

    # Rows and columns beyond the end read the last one's data, and nothing is stored for them.
    step = tl.arange(0, K_STEP)
    in_row = tl.minimum(row, tokens - 1).to(tl.int64)
    x_at = x + sample * x_sample + in_row[:, None] * x_token + step[None, :]
    weight_at = weight + tl.minimum(column, N - 1).to(tl.int64)[None, :] * weight_row + step[:, None]
    groups = tl.cdiv(K, 128)
    if BLOCKS:
        x_scales += (sample * tokens + in_row) * groups
        weight_scales += (n_tile * N_TILE // 128).to(tl.int64) * groups
    sums = tl.zeros((M_TILE, N_TILE), tl.int32 if DOT == "int8" and not BLOCKS else tl.float32)
    for start in range(0, K, K_STEP):
        if WHOLE:
            a, b = tl.load(x_at), tl.load(weight_at)
        else:
            left = step < K - start
            a = tl.load(x_at, mask=left[None, :], other=0.0)
            b = tl.load(weight_at, mask=left[:, None], other=0.0)
        if DECODE:
            if X8:
                a = _decode_e4m3(a, tl.float16)
            b = _decode_e4m3(b, a.dtype)
        elif not X8:
            b = b.to(a.dtype)
        if BLOCKS:
            scale = tl.load(weight_scales + start // 128)
            if X8:
                scale = (tl.load(x_scales + start // 128) * scale)[:, None]
            if DOT == "int8":
                sums += tl.dot(a, b, out_dtype=tl.int32).to(tl.float32) * scale
            else:
                sums += tl.dot(a, b, input_precision="tf32x3") * scale
        elif DOT == "int8":
            sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        elif FEW_BITS:
            # The last argument keeps the compiler from adding inside the matrix instruction.
            sums += tl.dot(a, b, max_num_imprecise_acc=K_STEP)
        else:
            sums = tl.dot(a, b, sums, input_precision="tf32x3")
        x_at += K_STEP
        weight_at += K_STEP

    if not BLOCKS:
        x_scales += sample * tokens
    gate += sample * gate_sample
    residual += sample * residual_sample
    out += sample * tokens * N
    # In two halves, of which one can wait in the accumulators: fewer registers.
    HALF: tl.constexpr = N_TILE // 2
    left_half, right_half = sums.reshape(M_TILE, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        _finish(
            (left_half if half == 0 else right_half).to(tl.float32),
            row,
            n_tile * N_TILE + half * HALF + tl.arange(0, HALF),
            x_scales,
            weight_scales,
            bias,
            gate,
            residual,
            out,
            tokens,
            N,
            gate_token,
            residual_token,
            SCALED,
            X8,
            BLOCKS,
            BIAS,
            GELU,
            GATE,
            RESIDUAL,
        )


def quantize_rows(
    x: Tensor,
    kind: str,
    groups: bool = False,
    *,
    out: Sequence[Tensor | None] | None = None,
    arch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``arch``: the chip, if not that of ``x``; for tests."""
    k = x.shape[-1]
    of_data, of_scales = each(out, 2)
    data = place(of_data, x.shape, KINDS[kind][0], x.device)
    count = (-(-k // BLOCK),) if groups else ()
    scales = place(of_scales, (*x.shape[:-1], *count), torch.float32, x.device)
    if data.numel():
        rows = last_together(x.reshape(-1, k))
        constants, options = tiles.row_launch(tiles.arch_of(x) if arch is None else arch, kind, k, groups)
        with on_device_of(x):
            _quantize[(rows.shape[0],)](
                rows, data.view(torch.int8), scales, rows.stride(0), *(count or (1,)), **constants, **options
            )
    return data, scales


def linear_w8a8(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    arch: int | None = None,
) -> Tensor:
    """``arch``: the chip, if not that of ``x``; for tests."""
    return _launch(x, x_scales, weight, weight_scales, bias, gate, residual, activation, (out_dtype, out), arch)


def linear_w8(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    arch: int | None = None,
) -> Tensor:
    """``arch``: the chip, if not that of ``x``; for tests."""
    return _launch(x, None, weight, weight_scales, bias, gate, residual, activation, (out_dtype, out), arch)


def _launch(
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: str,
    result: tuple[torch.dtype | None, Tensor | None],
    arch: int | None,
) -> Tensor:
    n, k = weight.shape
    out = place(result[1], (*x.shape[:-1], n), result[0] or default_dtype(x, residual), x.device)
    if not out.numel():
        return out
    if gate is None:  # then it does not matter which sample a row is of
        x = x.reshape(1, -1, k)
        residual = None if residual is None else residual.reshape(1, -1, n)
    epilogue = tiles.Epilogue(
        bias is not None, int(activation == "gelu_tanh"), tiles.gate_mode(gate), residual is not None
    )
    constants, options = tiles.launch(
        tiles.arch_of(x) if arch is None else arch,
        "int8" if weight.dtype == torch.int8 else "fp8",
        x.dtype if x_scales is None else None,
        (n, k),
        weight_scales.dim() == 2,
        epilogue,
    )
    x, weight = last_together(x), last_together(weight)
    if constants["DECODE"]:
        x, weight = (t.view(torch.int8) if t.dtype == torch.float8_e4m3fn else t for t in (x, weight))
    weight_scales = weight_scales.contiguous()
    gates = out if gate is None else last_together(gate)
    stream = out if residual is None else last_together(residual)
    samples, tokens = x.shape[:2]
    grid = (samples * -(-tokens // constants["M_TILE"]) * -(-n // constants["N_TILE"]),)
    with on_device_of(x):
        matmul[grid](
            x,
            weight_scales if x_scales is None else x_scales.contiguous(),
            weight,
            weight_scales,
            out if bias is None else bias.contiguous(),
            gates,
            stream,
            out,
            samples,
            tokens,
            n,
            k,
            *steps(x),
            weight.stride(0),
            *(steps(gates) if gate is not None else (0, 0)),
            *(steps(stream) if residual is not None else (0, 0)),
            **constants,
            **options,
        )
    return out


BUILDS = tiles.builds(matmul, _quantize)

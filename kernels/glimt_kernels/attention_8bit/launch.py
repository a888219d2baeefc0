"""How attention_8bit's kernel is launched: tiles on each chip, layouts, and the shipped configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt_kernels.attention.call import chip
from glimt_kernels.quantize_qkv.reference import tokens_last
from glimt_kernels.triton_env import ARCHS, Build, power_of_2

FP8 = torch.float8_e4m3fn
FP8_ARCHS = tuple(arch for arch in ARCHS if arch >= 89)
# What multiplies queries and keys, and weights and values. On sm_100 Triton has no int8 for tensor memory.
INT8_UNITS = {80: "IMMA", 86: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "IMMA", 120: "IMMA"}
FP8_UNITS = {89: "QMMA", 90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"}
HALF_UNITS = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
POINTERS = {torch.int8: "*i8", FP8: "*fp8e4nv", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Tiles(NamedTuple):
    """Launch shape: queries of a program, keys of a block, and how weights become an operand."""

    queries: int
    keys: int
    warps: int
    stages: int
    two_sums: bool = False
    shuffled: bool = False


def tiles(arch: int, qk: torch.dtype, pv: torch.dtype, head_dim: int, block: int) -> Tiles:
    """The launch shape on a chip.

    Args:
        arch: as in ``Case``; 0 (interpreted) is as sm_80.
        qk, pv: dtypes of queries and keys, and of values.
        block: tokens that share a scale; a program's block of keys has one.
    """
    known = chip(arch)
    width = max(32, power_of_2(head_dim))
    # Elsewhere the accumulator has float32's digits, and the way to the operand is through memory anyway.
    two_sums, shuffled = pv == FP8 and known in (0, 89, 90), pv == FP8 and known != 100
    if width == 256:
        return Tiles(64 if known in (90, 100) else 32, 32, 8, 2, two_sums, shuffled)
    if block == 128 and (width < 128 or known in (90, 100)):  # 128 keys of 128 channels spill elsewhere
        return Tiles(128, 128, 8, 2, two_sums, shuffled)
    return Tiles(128, 64, 8, 3, two_sums, shuffled)


def tokens_together(v: Tensor) -> Tensor:
    """``v`` itself if the tokens of a channel lie together, 16 bytes apart, else a copy for which that is so."""
    apart = all(step % 16 == 0 for step, n in zip(v.stride(), v.shape, strict=True) if step != 1 and n > 1)
    return v if v.stride(1) == 1 and apart and v.data_ptr() % 16 == 0 else tokens_last(v)


def constants(tile: Tiles, head_dim: int, block: int, biased: bool) -> dict[str, Any]:
    """The constants of the kernel."""
    return {
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(32, power_of_2(head_dim)),
        "GROUP": block,
        "BIASED": biased,
        "TWO_SUMS": tile.two_sums,
        "SHUFFLED": tile.shuffled,
    }


def _build(kernel: Any, arch: int, qk: torch.dtype, pv: torch.dtype, head_dim: int, block: int, cross: bool) -> Build:
    """Self-attention, or cross-attention with a bias."""
    tile = tiles(arch, qk, pv, head_dim, block)
    out = "*bf16" if pv == FP8 else POINTERS[pv]
    pointers = {"q": POINTERS[qk], "k": POINTERS[qk], "v": POINTERS[pv], "out": out}
    scales = dict.fromkeys(("q_scale", "k_scale", "v_scale", "bias"), "*fp32")
    strides = [f"{x}_{axis}" for x in ("q", "k", "out") for axis in ("sample", "token", "head")]
    first, second = (INT8_UNITS if qk == torch.int8 else FP8_UNITS), (FP8_UNITS if pv == FP8 else HALF_UNITS)
    names = {torch.int8: "int8", FP8: "fp8", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return Build(
        op="attention_8bit",
        case=f"{names[qk]} {names[pv]} {head_dim} block {block} {'cross' if cross else 'self'}",
        kernel=kernel,
        signature={
            **pointers,
            **scales,
            "scale": "fp32",
            **dict.fromkeys(("tokens", "keys", "heads"), "i32"),
            **dict.fromkeys((*strides, "v_sample", "v_head", "v_step", "bias_sample"), "i64"),
        },
        constants=constants(tile, head_dim, block, cross),
        num_warps=tile.warps,
        num_stages=tile.stages,
        archs=(arch,),
        needs={arch: (first[arch], second[arch])},
    )


def builds(kernel: Any) -> Iterator[Build]:
    """Every shipped configuration."""
    int8, fp16, bf16 = torch.int8, torch.float16, torch.bfloat16
    shapes = [(64, 128, False), (128, 128, False), (128, 128, True)]
    more = [(128, 64, False), *((head_dim, 128, True) for head_dim in (32, 96, 256))]
    formats = (
        (int8, FP8, FP8_ARCHS, [*shapes, *more]),
        (int8, fp16, ARCHS, [*shapes, *more]),
        (int8, bf16, ARCHS, shapes),
        (FP8, FP8, FP8_ARCHS, shapes[:2]),
    )
    for qk, pv, archs, wanted in formats:
        for arch in archs:
            for head_dim, block, cross in wanted:
                yield _build(kernel, arch, qk, pv, head_dim, block, cross)

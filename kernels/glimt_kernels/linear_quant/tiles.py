"""The launch shapes of the linear_quant kernels, and the list of them that is compiled ahead of time.

The plain linear layer (../linear) is launched by the same rules: of kind None.

Found by compiling for every chip (README.md holds the ladder): the largest tile without spills, within shared memory.
None has been timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt_kernels.eight_bit.reference import SMALLEST
from glimt_kernels.linear_quant.quantize import BLOCK, KINDS
from glimt_kernels.triton_env import ARCHS, INTERPRETED, Build, power_of_2

# Gates: none, one for each sample, one for each token.
NO_GATE, SAMPLE_GATE, TOKEN_GATE = range(3)


class Epilogue(NamedTuple):
    """What is done to the accumulators; ``gelu``: 1 the one with tanh, 2 the one with erf; ``gate``: see above."""

    bias: bool = True
    gelu: int = 0
    gate: int = NO_GATE
    residual: bool = False


class Tile(NamedTuple):
    """One program's part of the output, [m, n], in steps of k."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def arch_of(x: Tensor) -> int:
    """The chip whose tiles run here: the newest one that is not newer than the device; sm_90 for the interpreter."""
    if not x.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(x.device)
    return max((arch for arch in ARCHS if arch <= 10 * major + minor), default=ARCHS[0])


def gate_mode(gate: Tensor | None) -> int:
    """How a gate [B or 1, N or 1, D] is read."""
    if gate is None:
        return NO_GATE
    return SAMPLE_GATE if gate.shape[1] == 1 else TOKEN_GATE


def has_fp8(arch: int) -> bool:
    """Whether the chip multiplies and converts e4m3; elsewhere its bytes are decoded by integer arithmetic."""
    return arch >= 89


def keeps_few_bits(arch: int) -> bool:
    """Whether the chip's fp8 instructions accumulate in about 22 bits (Ada, Hopper): then float32 adds up each step."""
    return arch in (89, 90)


def operands(arch: int, kind: str | None, x_dtype: torch.dtype | None) -> str:
    """What the matrix instruction multiplies; ``x_dtype`` is None for 8-bit activations."""
    if kind is not None and x_dtype is None and (kind == "int8" or has_fp8(arch)):
        return kind
    return "float" if x_dtype == torch.float32 else "half"


def tile(arch: int, dot: str, shape: tuple[int, int], blocks: bool, epilogue: Epilogue) -> Tile:
    """The tile for a chip, operands, weight [N, K], scales and epilogue."""
    if any(size % 16 for size in shape):  # bytes come and go one by one, which takes registers
        return Tile(64, 64, 64, 4, 2) if dot != "float" else Tile(64, 32, 32, 4, 2)
    if dot == "float":
        return Tile(128, 128, 32, 8, 3)
    step = 64 if dot == "half" else BLOCK
    two_sums = blocks or (dot == "fp8" and keeps_few_bits(arch))
    # On sm_100 the accumulators come back from tensor memory all at once; GELU and more after it takes registers.
    crowded = epilogue.residual and (arch == 100 or epilogue.gelu > 0)
    if two_sums or crowded or epilogue.gate == TOKEN_GATE:
        return Tile(128, 128, step, 8, 4)
    if (arch == 90 and dot == "half") or (arch == 100 and dot != "int8"):
        return Tile(128, 256, step, 8, 3 if dot == "half" else 4)
    return Tile(256, 128, step, 8, 3) if arch == 90 else Tile(256, 128, step // 2, 8, 4)


def within_shared(arch: int, chosen: Tile, item_bytes: int) -> Tile:
    """With as many stages as shared memory holds; a weight that is not in eight bits takes more of it."""
    room = (227 if arch in (90, 100) else 99) << 10
    return chosen._replace(stages=min(chosen.stages, room // ((chosen.m + chosen.n) * chosen.k * item_bytes)))


def launch(
    arch: int, kind: str | None, x_dtype: torch.dtype | None, shape: tuple[int, int], blocks: bool, epilogue: Epilogue
) -> tuple[dict[str, Any], dict[str, int]]:
    """(constants of the matrix kernel, launch options) for a weight [N, K].

    Args:
        kind: of the weight; None for one in the dtype of x, without scales.
        x_dtype: None for 8-bit activations.
    """
    dot = operands(arch, kind, x_dtype)
    chosen = tile(arch, dot, shape, blocks, epilogue)
    if kind is None and x_dtype is not None:
        if dot == "float" and chosen.m == 128:  # both operands are split in three: 408 bytes of stack on sm_80
            chosen = chosen._replace(n=64)
        chosen = within_shared(arch, chosen, x_dtype.itemsize)
    constants = {
        "M_TILE": chosen.m,
        "N_TILE": chosen.n,
        "K_STEP": chosen.k,
        "WHOLE": shape[1] % chosen.k == 0,
        "SCALED": kind is not None,
        "X8": x_dtype is None,
        "DOT": dot,
        "DECODE": kind == "fp8" and not has_fp8(arch),
        "BLOCKS": blocks,
        "FEW_BITS": dot == "fp8" and keeps_few_bits(arch),
        "BIAS": epilogue.bias,
        "GELU": epilogue.gelu,
        "GATE": epilogue.gate,
        "RESIDUAL": epilogue.residual,
    }
    return constants, {"num_warps": chosen.warps, "num_stages": chosen.stages}


def row_launch(arch: int, kind: str, k: int, groups: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """(constants of the kernel that quantizes rows of k, launch options)."""
    group = BLOCK if groups else power_of_2(k)
    constants = {
        "WIDTH": k,
        "GROUPS": power_of_2(-(-k // group)),
        "GROUP": group,
        "TOP": KINDS[kind][1],
        "SMALLEST": SMALLEST,
        "INT8": kind == "int8",
        # The interpreter rounds to e4m3 wrongly.
        "NATIVE": kind == "fp8" and has_fp8(arch) and not INTERPRETED,
    }
    return constants, {"num_warps": min(16, max(1, power_of_2(k) // 512))}


_EPILOGUES = {
    "bias": Epilogue(),
    "gelu": Epilogue(gelu=1),
    "gate": Epilogue(gate=SAMPLE_GATE, residual=True),
    "token gate": Epilogue(gate=TOKEN_GATE, residual=True),
}
# Of Triton: the name of a type that a pointer points to.
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
STEPS = ("x_sample", "x_token", "weight_row", "gate_sample", "gate_token", "residual_sample", "residual_token")
# [N, K] whose K is a number of steps, is not, and where nothing is a multiple of 16.
WHOLE, RAGGED, ODD = (1 << 12, 1 << 12), (1 << 12, (1 << 12) + 16), ((1 << 12) + 1, (1 << 12) + 1)
SIZES = {WHOLE: "", RAGGED: "ragged", ODD: "odd"}
# The matrix instruction by operands.
MATRIX = {
    "int8": {arch: "IGMMA" if arch == 90 else "IMMA" for arch in ARCHS},
    "fp8": {89: "QMMA", 90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"},
    "half": {arch: {90: "HGMMA", 100: "UTCHMMA"}.get(arch, "HMMA") for arch in ARCHS},
    "float": {arch: {90: "HGMMA", 100: "UTC"}.get(arch, "HMMA") for arch in ARCHS},
}


def builds(matmul: Any, quantize: Any) -> list[Build]:
    """Every shipped configuration of the two kernels."""
    return [*_matmuls(matmul), *_rows(quantize)]


def _matmuls(kernel: Any) -> Iterator[Build]:
    for kind in KINDS:
        for name in _EPILOGUES:
            yield from _matmul(kernel, kind, None, name)
        for x_dtype in (None, torch.bfloat16):
            yield from _matmul(kernel, kind, x_dtype, "gate", blocks=True)
        for sizes in (RAGGED, ODD):
            yield from _matmul(kernel, kind, None, "gelu", sizes=sizes)
    for name in ("gelu", "gate", "token gate"):
        yield from _matmul(kernel, "fp8", torch.bfloat16, name)
    for sizes in (RAGGED, ODD):
        yield from _matmul(kernel, "fp8", torch.bfloat16, "gelu", sizes=sizes)
    yield from _matmul(kernel, "int8", torch.bfloat16, "gate")
    yield from _matmul(kernel, "fp8", torch.float16, "gate")
    yield from _matmul(kernel, "fp8", torch.float32, "gate")


def launched_alike(
    kind: str | None, x_dtype: torch.dtype | None, shape: tuple[int, int], blocks: bool, epilogue: Epilogue
) -> Iterator[tuple[tuple[int, ...], dict[str, Any], dict[str, int]]]:
    """(chips, constants, launch options): chips with the same :func:`launch` together."""
    alike: dict[str, list[int]] = {}
    for arch in ARCHS:
        alike.setdefault(repr(launch(arch, kind, x_dtype, shape, blocks, epilogue)), []).append(arch)
    for archs in alike.values():
        yield tuple(archs), *launch(archs[0], kind, x_dtype, shape, blocks, epilogue)


def _matmul(
    kernel: Any,
    kind: str,
    x_dtype: torch.dtype | None,
    name: str,
    *,
    blocks: bool = False,
    sizes: tuple[int, int] = WHOLE,
) -> Iterator[Build]:
    """One build for all chips that are launched alike."""
    for archs, constants, options in launched_alike(kind, x_dtype, sizes, blocks, _EPILOGUES[name]):
        working = NAMES[x_dtype or torch.bfloat16]
        words = [kind, "" if x_dtype is None else working, name, "blocks" if blocks else "", SIZES[sizes]]
        yield Build(
            op="linear_w8a8" if x_dtype is None else "linear_w8",
            case=" ".join(word for word in words if word),
            kernel=kernel,
            signature=signature(
                "i8" if kind == "int8" or constants["DECODE"] else "fp8e4nv",
                None if x_dtype is None else working,
                sizes,
            ),
            constants=constants,
            archs=archs,
            # With a bias alone nothing but the second sum is an addition without a product.
            needs={
                arch: (MATRIX[constants["DOT"]][arch], *["FADD"] * (constants["FEW_BITS"] and name == "bias"))
                for arch in archs
            },
            num_warps=options["num_warps"],
            num_stages=options["num_stages"],
        )


def signature(byte: str, working: str | None, sizes: tuple[int, int]) -> dict[str, str]:
    """Triton's types of the matrix kernel's arguments: ``byte`` of the weight, ``working`` of x if it is another."""
    wide = working or "bf16"
    pointers = {
        **dict.fromkeys(("x", "bias", "residual", "out"), wide),
        **dict.fromkeys(("x_scales", "weight_scales", "gate"), "fp32"),
        "weight": byte,
        **({} if working else {"x": byte}),
    }
    size = "i32" if sizes == ODD else "i64"  # the survey takes i64 as multiples of 16
    return {
        **{name: f"*{pointed}" for name, pointed in pointers.items()},
        **dict.fromkeys(("samples", "tokens"), "i32"),
        **dict.fromkeys(("N", "K", *STEPS), size),
    }


def _rows(kernel: Any) -> Iterator[Build]:
    # Wan 1.3B's width and inner width, Wan 14B's inner width.
    for k in (1536, 8960, 13824):
        for kind in KINDS:
            for archs in ((80, 86), (89, 90, 100, 120)) if kind == "fp8" else (ARCHS,):
                for groups in (False, True) if k == 8960 else (False,):
                    constants, options = row_launch(archs[0], kind, k, groups)
                    yield Build(
                        op="quantize_rows",
                        case=f"{kind} bf16 {k}{' groups' if groups else ''}",
                        kernel=kernel,
                        signature={"x": "*bf16", "data": "*i8", "scales": "*fp32", "x_row": "i64", "count": "i32"},
                        constants=constants,
                        archs=archs,
                        wide=True,
                        num_warps=options["num_warps"],
                    )

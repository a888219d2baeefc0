"""linear in Triton: the matrix kernel of ../linear_quant with a weight in the dtype of x and no scales.

    tiles of the output, K in steps -> + bias -> GELU -> * gate -> + residual -> rounded once, stored

One launch. Bytes: x, weight and residual once from memory (the rest of the reads from the second-level cache), the
output once; a pass of its own for gate and residual would move two outputs more. Launch shapes in
../linear_quant/tiles.py; each shipped one is in :data:`BUILDS`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glimt_kernels.linear.call import ACTIVATIONS
from glimt_kernels.linear_quant import tiles
from glimt_kernels.linear_quant.reference import default_dtype
from glimt_kernels.linear_quant.tiles import NO_GATE, SAMPLE_GATE, TOKEN_GATE, Epilogue, gate_mode
from glimt_kernels.linear_quant.triton import matmul
from glimt_kernels.outputs import place
from glimt_kernels.triton_env import Build, last_together, on_device_of, steps


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    out: Tensor | None = None,
    arch: int | None = None,
) -> Tensor:
    """``arch``: the chip, if not that of ``x``; for tests."""
    n, k = weight.shape
    out = place(out, (*x.shape[:-1], n), default_dtype(x, residual), x.device)
    if not out.numel():
        return out
    if gate is None:  # then it does not matter which sample a row is of
        x = x.reshape(1, -1, k)
        residual = None if residual is None else residual.reshape(1, -1, n)
    epilogue = Epilogue(bias is not None, ACTIVATIONS.index(activation), gate_mode(gate), residual is not None)
    chip = tiles.arch_of(x) if arch is None else arch
    constants, options = tiles.launch(chip, None, x.dtype, (n, k), False, epilogue)
    x, weight = last_together(x), last_together(weight)
    gates = out if gate is None else last_together(gate)
    stream = out if residual is None else last_together(residual)
    samples, tokens = x.shape[:2]
    grid = (samples * -(-tokens // constants["M_TILE"]) * -(-n // constants["N_TILE"]),)
    with on_device_of(x):
        matmul[grid](
            x,
            out,  # of scales there are none
            weight,
            out,
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


_EPILOGUES = {
    "bias": Epilogue(),
    "gelu": Epilogue(gelu=1),
    "gelu erf": Epilogue(gelu=2),
    "residual": Epilogue(gate=NO_GATE, residual=True),
    "gate": Epilogue(gate=SAMPLE_GATE, residual=True),
    "token gate": Epilogue(gate=TOKEN_GATE, residual=True),
    "gelu gate": Epilogue(gelu=1, gate=SAMPLE_GATE, residual=True),
    "gelu erf residual": Epilogue(gelu=2, gate=NO_GATE, residual=True),
    "gelu erf gate": Epilogue(gelu=2, gate=SAMPLE_GATE, residual=True),
    "gelu erf token gate": Epilogue(gelu=2, gate=TOKEN_GATE, residual=True),
}


def _builds() -> Iterator[Build]:
    """In bfloat16, for widths that are whole steps (those of every Wan are), every epilogue that a model asks for or
    could; the rest once, where it takes most."""
    for name in _EPILOGUES:
        yield from _build(torch.bfloat16, name)
    for sizes in (tiles.RAGGED, tiles.ODD):
        yield from _build(torch.bfloat16, "gate", sizes)
    for name in ("gelu", "gate", "gelu erf gate"):
        yield from _build(torch.float16, name)
    yield from _build(torch.float32, "gate")
    yield from _build(torch.float32, "gelu erf token gate", tiles.ODD)


def _build(dtype: torch.dtype, name: str, sizes: tuple[int, int] = tiles.WHOLE) -> Iterator[Build]:
    """One build for all chips that are launched alike."""
    for archs, constants, options in tiles.launched_alike(None, dtype, sizes, False, _EPILOGUES[name]):
        working = tiles.NAMES[dtype]
        yield Build(
            op="linear",
            case=" ".join(word for word in (working, name, tiles.SIZES[sizes]) if word),
            kernel=matmul,
            signature=_signature(working, sizes),
            constants=constants,
            archs=archs,
            needs={arch: (tiles.MATRIX[constants["DOT"]][arch],) for arch in archs},
            num_warps=options["num_warps"],
            num_stages=options["num_stages"],
        )


def _signature(working: str, sizes: tuple[int, int]) -> dict[str, str]:
    """Gates in float32, as the modulation of a transformer is."""
    return {**tiles.signature(working, working, sizes), **dict.fromkeys(("x_scales", "weight_scales"), f"*{working}")}


BUILDS = list(_builds())

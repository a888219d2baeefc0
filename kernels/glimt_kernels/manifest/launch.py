"""The rules of a manifest, applied: which kernel takes a call, which cubin a chip runs, grid and packed arguments.

The reference for ``csrc/manifest/launch.cpp``, which says the same in the same words.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glimt_kernels.manifest.expressions import evaluate
from glimt_kernels.manifest.spec import (
    SCALARS,
    Argument,
    Axis,
    Cubin,
    Kernel,
    LaunchError,
    Manifest,
    ManifestError,
    TensorRule,
)

Shape = Sequence[int]
MAX_GRID = (1 << 31) - 1


@dataclass(frozen=True)
class Launch:
    """``grid`` blocks; 0: nothing is to be launched. ``params``: the bytes that the driver is handed."""

    grid: int
    params: bytes


def bind(kernel: Kernel, shapes: Sequence[Shape]) -> dict[str, int]:
    """The sizes that vary, from the shapes of inputs and outputs.

    Raises:
        LaunchError: these are no shapes for the kernel.
    """
    if len(shapes) != len(kernel.tensors):
        raise LaunchError("the number of tensors is another")
    sizes: dict[str, int] = {}
    for tensor, shape in zip(kernel.tensors, shapes, strict=True):
        _bind(tensor, shape, sizes)
    return sizes


def _bind(tensor: TensorRule, shape: Shape, sizes: dict[str, int]) -> None:
    if len(shape) != len(tensor.axes):
        raise LaunchError("a tensor has another number of axes")
    for axis, size in zip(tensor.axes, shape, strict=True):
        if size < 0:
            raise LaunchError("a size is negative")
        _agree(axis, size, sizes)


def _agree(axis: Axis, size: int, sizes: dict[str, int]) -> None:
    if isinstance(axis, int):
        if axis != size:
            raise LaunchError("a size is not the one that the kernel was compiled for")
    elif sizes.setdefault(axis, size) != size:
        raise LaunchError("sizes that must be equal differ")


def launch(
    kernel: Kernel, shapes: Sequence[Shape], addresses: Sequence[int], attributes: Mapping[str, float]
) -> Launch:
    """What a call comes to.

    Args:
        shapes, addresses: of the inputs, then of the outputs.

    Raises:
        LaunchError: the kernel does not take the call.
    """
    sizes = bind(kernel, shapes)
    if not all(evaluate(code, sizes) for code in kernel.requires):
        raise LaunchError("a requirement of the kernel does not hold")
    grid = evaluate(kernel.grid, sizes)
    if not 0 <= grid <= MAX_GRID:
        raise LaunchError("the grid is too large")
    named = dict(zip((tensor.name for tensor in kernel.tensors), addresses, strict=True))
    packed = b""
    for argument, offset in zip(kernel.arguments, offsets(kernel.arguments), strict=True):
        packed += bytes(offset - len(packed)) + _value(argument, sizes, named, attributes)
    return Launch(grid, packed)


def size_of(argument: Argument) -> int:
    """Bytes of a parameter, which are its alignment too."""
    return SCALARS.get(argument.type, 8)


def offsets(arguments: Sequence[Argument]) -> list[int]:
    """Where each parameter begins."""
    found, end = [], 0
    for argument in arguments:
        start = -(-end // size_of(argument)) * size_of(argument)
        found.append(start)
        end = start + size_of(argument)
    return found


def _value(
    argument: Argument, sizes: Mapping[str, int], addresses: Mapping[str, int], attributes: Mapping[str, float]
) -> bytes:
    if argument.kind == "tensor":
        address = addresses[argument.source]
        if address % argument.divisible:
            raise LaunchError("an address is not the multiple that the kernel was compiled for")
        return struct.pack("<Q", address)
    if argument.kind == "attr":
        try:
            return struct.pack("<f", attributes[argument.source] * argument.factor)
        except OverflowError:
            raise LaunchError("an attribute overflows") from None
    if argument.kind == "null":
        return struct.pack("<Q", 0)
    value = evaluate(argument.code, sizes)
    if argument.type == "i32" and not -(1 << 31) <= value < 1 << 31:
        raise LaunchError("a number does not fit its type")
    if value % argument.divisible:
        raise LaunchError("a number is not the multiple that the kernel was compiled for")
    return struct.pack("<i" if argument.type == "i32" else "<q", value)


def find(manifest: Manifest, op: str, dtypes: Sequence[str], shapes: Sequence[Shape]) -> Kernel:
    """The first kernel of ``op`` for these dtypes and shapes, of inputs and then outputs.

    Raises:
        ManifestError: there is none; says why each one does not fit.
    """
    reasons = []
    for kernel in manifest.kernels:
        if kernel.op != op:
            continue
        try:
            if [tensor.dtype for tensor in kernel.tensors] != list(dtypes):
                raise LaunchError("the dtypes are others")
            sizes = bind(kernel, shapes)
            if not all(evaluate(code, sizes) for code in kernel.requires):
                raise LaunchError("a requirement of the kernel does not hold")
        except LaunchError as error:
            reasons.append(f"{kernel.case}: {error}")
        else:
            return kernel
    raise ManifestError(f"no kernel of {op} takes such a call: {'; '.join(reasons) or 'there is none of that name'}")


def choose(kernel: Kernel, capability: int) -> Cubin:
    """The cubin for a chip (89: compute capability 8.9): its own, else the newest older one of the same generation.

    Raises:
        ManifestError: none runs there.
    """
    fits = [cubin for cubin in kernel.cubins if _runs(cubin.target, capability)]
    if not fits:
        there = ", ".join(cubin.target for cubin in kernel.cubins)
        raise ManifestError(f"{kernel.op} {kernel.case} has no cubin for sm_{capability}; it has {there}")
    return max(fits, key=lambda cubin: _number(cubin.target))


def _number(target: str) -> int:
    return int(re.sub("[^0-9]", "", target))


def _runs(target: str, capability: int) -> bool:
    number = _number(target)
    if target.endswith("a"):  # made for this chip, with what no later one need have
        return number == capability
    return number // 10 == capability // 10 and number <= capability

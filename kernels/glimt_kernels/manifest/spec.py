"""What a manifest says, as values: kernels with their tensors, rules, arguments and cubins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMAT = 1
FILE = "kernels.manifest"
Axis = int | str  # a length, or the name of one that varies
Code = tuple[Axis, ...]  # an expression in postfix order: integers, names of sizes, operators
DTYPES = ("fp32", "fp16", "bf16")
# Type of an argument that is no pointer -> its bytes; pointers have 8.
SCALARS: Mapping[str, int] = {"i32": 4, "i64": 8, "fp32": 4}
POINTERS = (*(f"*{dtype}" for dtype in DTYPES), "*i8")
# Fixed, so that a launcher keeps everything in arrays of its own: nothing is allocated for a launch.
MAX_AXES, MAX_SIZES, MAX_TENSORS, MAX_ARGUMENTS, MAX_CODE, MAX_DEPTH = 8, 16, 16, 48, 48, 8
MAX_INT = (1 << 63) - 1


class ManifestError(ValueError):
    """A manifest or a cubin is not what was written, or does not say what was asked for."""


class LaunchError(ValueError):
    """A kernel does not take such a call; says why in one of the fixed sentences that C++ has too."""


@dataclass(frozen=True)
class TensorRule:
    """A tensor of a call, contiguous. Equal names of sizes are equal sizes."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Argument:
    """One parameter of the compiled kernel.

    Attributes:
        type: ``SCALARS`` or ``POINTERS``.
        divisible: what its value must be a multiple of, for the kernel was compiled so.
        kind: "tensor" (address of ``source``), "int" (``code``), "attr" (``source`` times ``factor``), or "null".
    """

    name: str
    type: str
    divisible: int
    kind: str
    source: str = ""
    code: Code = ()
    factor: float = 1.0


@dataclass(frozen=True)
class Cubin:
    """A kernel's machine code for one chip.

    Attributes:
        target: "sm_89" runs on every 8.x from 8.9 on, "sm_90a" on 9.0 and nothing else.
        source: digest of what it was compiled from (``digest.digest_of``).
        shared_bytes: of dynamic shared memory to launch with.
        entry: name of the function.
    """

    target: str
    file: str
    num_bytes: int
    sha256: str
    source: str
    registers: int
    shared_bytes: int
    warps: int
    entry: str


@dataclass(frozen=True)
class Kernel:
    """One op for one form of call.

    Attributes:
        attributes: floats of a call.
        requires: expressions that must not be 0.
        grid: number of blocks; 0 where there is nothing to do.
    """

    op: str
    case: str
    attributes: tuple[str, ...]
    inputs: tuple[TensorRule, ...]
    outputs: tuple[TensorRule, ...]
    requires: tuple[Code, ...]
    grid: Code
    arguments: tuple[Argument, ...]
    cubins: tuple[Cubin, ...] = ()

    @property
    def tensors(self) -> tuple[TensorRule, ...]:
        return (*self.inputs, *self.outputs)


@dataclass(frozen=True)
class Manifest:
    """All of it. ``compiler`` is name and version."""

    compiler: str
    kernels: tuple[Kernel, ...]

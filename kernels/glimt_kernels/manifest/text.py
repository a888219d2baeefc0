"""The manifest as text: a line a fact, words apart by one space, in the last line the digest of all before it.

    glimt-kernels 1
    compiler triton 3.7.1
    kernel ada_norm bf16-1536
    attr eps
    in x bf16 B N 1536
    out out bf16 B N 1536
    require G B == G 1 == or
    grid B N *
    arg x *bf16 16 tensor x
    arg tokens i32 1 int N
    arg eps fp32 1 attr eps 1.0
    arg global_scratch *i8 1 null
    cubin sm_89 FILE BYTES SHA256 SOURCE REGISTERS SHARED WARPS ENTRY
    end SHA256

No JSON: a reader in C++ would bring a library along, or a parser of its own with escapes, nesting and four ways to
write a number. Here a hundred lines read it, nothing can be said in two ways, so equal manifests are equal bytes, and a
difference between two is a line of ``diff``. :func:`parse` refuses everything else; ``csrc/manifest/parse.cpp``
refuses the same, with the same words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from glimt_kernels.manifest import spec
from glimt_kernels.manifest.expressions import OPERATORS
from glimt_kernels.manifest.launch import offsets, size_of
from glimt_kernels.manifest.spec import Argument, Axis, Code, Cubin, Kernel, Manifest, ManifestError, TensorRule

MAGIC = "glimt-kernels"
MAX_PARAM_BYTES = 512
_ORDER = ("kernel", "attr", "in", "out", "require", "grid", "arg", "cubin")  # of the lines of a kernel
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of cases and files: no path leads out of the folder
_SIZE = re.compile(r"[A-Z][A-Z0-9]{0,15}")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_FLOAT = re.compile(r"[0-9]{1,17}\.[0-9]{1,17}")
_TARGET = re.compile(r"sm_[1-9][0-9]{1,2}a?")
_SHA256, _SOURCE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")


# ---- writing ---------------------------------------------------------------------------------------------------------


def dump(manifest: Manifest) -> bytes:
    """The file's bytes. What :func:`parse` would refuse is refused here.

    Raises:
        ManifestError: the values break a rule of the format.
    """
    lines = [f"{MAGIC} {spec.FORMAT}", f"compiler {manifest.compiler}"]
    for kernel in manifest.kernels:
        lines += _lines(kernel)
    body = "".join(f"{line}\n" for line in lines).encode("ascii")
    content = sealed(body)
    if parse(content) != manifest:
        raise ManifestError("the manifest does not read back as it was written")
    return content


def sealed(body: bytes) -> bytes:
    """With the last line."""
    return body + f"end {hashlib.sha256(body).hexdigest()}\n".encode()


def _lines(kernel: Kernel) -> list[str]:
    return [
        f"kernel {kernel.op} {kernel.case}",
        *(f"attr {name}" for name in kernel.attributes),
        *(_words("in", x.name, x.dtype, *x.axes) for x in kernel.inputs),
        *(_words("out", x.name, x.dtype, *x.axes) for x in kernel.outputs),
        *(_words("require", *code) for code in kernel.requires),
        _words("grid", *kernel.grid),
        *(_argument_line(argument) for argument in kernel.arguments),
        *(
            _words("cubin", c.target, c.file, c.num_bytes, c.sha256, c.source)
            + f" {c.registers} {c.shared_bytes} {c.warps} {c.entry}"
            for c in kernel.cubins
        ),
    ]


def _argument_line(a: Argument) -> str:
    tail: Mapping[str, tuple[Axis, ...]] = {
        "tensor": (a.source,),
        "int": a.code,
        "attr": (a.source, repr(a.factor)),
        "null": (),
    }
    return _words("arg", a.name, a.type, a.divisible, a.kind, *tail[a.kind])


def _words(*words: Axis) -> str:
    return " ".join(map(str, words))


# ---- reading ---------------------------------------------------------------------------------------------------------


class _WrongError(Exception):
    """What is wrong with a line; where it is, the caller knows."""


def parse(content: bytes) -> Manifest:
    """The manifest that ``content`` says.

    Raises:
        ManifestError: it was cut short or changed, is of another format, or breaks a rule; with the number of the line.
    """
    lines = _unsealed(content)
    kernels: list[_Draft] = []
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            words = line.split(" ")
            if number == 1:
                _check_magic(words)
            elif number == 2:
                _need(
                    len(words) > 1 and words[0] == "compiler" and all(words), "the second line must name the compiler"
                )
            else:
                _take(words, kernels)
        _need(len(lines) > 1, "the second line must name the compiler")
        if kernels:
            kernels[-1].close()
    except _WrongError as wrong:
        raise ManifestError(f"line {number}: {wrong}") from None
    return Manifest(lines[1].removeprefix("compiler "), tuple(draft.kernel() for draft in kernels))


def _unsealed(content: bytes) -> list[str]:
    """The lines but the last, which is compared with them."""
    match = re.fullmatch(rb"(.*\n)end ([0-9a-f]{64})\n", content, re.DOTALL)
    if match is None:
        raise ManifestError("the last line is not there: the file was cut short, or is no manifest of kernels")
    if hashlib.sha256(match[1]).hexdigest().encode() != match[2]:
        raise ManifestError("the digest in the last line is another: the file was changed after it was written")
    if not re.fullmatch(rb"[\x20-\x7e\n]*", match[1]):
        raise ManifestError("the file has bytes that are no text")
    return match[1].decode("ascii").split("\n")[:-1]


def _check_magic(words: Sequence[str]) -> None:
    _need(len(words) == 2 and words[0] == MAGIC, f"the file does not begin with '{MAGIC}'")
    _need(words[1] == str(spec.FORMAT), f"the format is another than {spec.FORMAT}, which this version reads")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _WrongError(otherwise)


def _fits(pattern: re.Pattern[str], word: str, otherwise: str) -> str:
    _need(pattern.fullmatch(word) is not None, otherwise)
    return word


def _integer(word: str, most: int = spec.MAX_INT) -> int:
    value = int(_fits(_INTEGER, word, "a whole number is not written as one"))
    _need(value <= most, "a whole number is too large")
    return value


class _Draft:
    """A kernel while its lines come."""

    def __init__(self, op: str, case: str) -> None:
        self.op, self.case = op, case
        self.attributes: list[str] = []
        self.inputs: list[TensorRule] = []
        self.outputs: list[TensorRule] = []
        self.requires: list[Code] = []
        self.grids: list[Code] = []
        self.arguments: list[Argument] = []
        self.cubins: list[Cubin] = []
        self.sizes: list[str] = []
        self.stage = 0

    def close(self) -> None:
        complete = self.inputs and self.outputs and self.grids and self.arguments and self.cubins
        _need(bool(complete), "the kernel before has not all of: in, out, grid, arg, cubin")

    def kernel(self) -> Kernel:
        return Kernel(
            self.op,
            self.case,
            tuple(self.attributes),
            tuple(self.inputs),
            tuple(self.outputs),
            tuple(self.requires),
            self.grids[0],
            tuple(self.arguments),
            tuple(self.cubins),
        )

    # A line each, without its first word.

    def attr(self, words: list[str]) -> None:
        _need(len(words) == 1, "an attr has one name")
        name = _fits(_NAME, words[0], "a name is none")
        _need(name not in self.attributes, "a name is there twice")
        self.attributes.append(name)

    def tensor(self, words: list[str], output: bool) -> None:
        _need(2 <= len(words) <= 2 + spec.MAX_AXES, "a tensor has a name, a dtype and at most 8 axes")
        name = _fits(_NAME, words[0], "a name is none")
        _need(words[1] in spec.DTYPES, "a dtype is none of fp32, fp16, bf16")
        _need(all(name != x.name for x in (*self.inputs, *self.outputs)), "a name is there twice")
        _need(len(self.inputs) + len(self.outputs) < spec.MAX_TENSORS, "there are too many tensors")
        axes = tuple(self._axis(word) for word in words[2:])
        if output:
            _need(any(axes == x.axes for x in self.inputs), "an output has the axes of no input")
        (self.outputs if output else self.inputs).append(TensorRule(name, words[1], axes))

    def _axis(self, word: str) -> Axis:
        if word[:1].isdigit():
            return _integer(word)
        _fits(_SIZE, word, "a size is neither a number nor a name in capitals")
        if word not in self.sizes:
            _need(len(self.sizes) < spec.MAX_SIZES, "there are too many sizes")
            self.sizes.append(word)
        return word

    def require(self, words: list[str]) -> None:
        self.requires.append(self._code(words))

    def grid(self, words: list[str]) -> None:
        _need(not self.grids, "there is a second grid")
        self.grids.append(self._code(words))

    def _code(self, words: list[str]) -> Code:
        _need(0 < len(words) <= spec.MAX_CODE, "an expression has 1 to 48 words")
        code, depth = [], 0
        for word in words:
            code.append(self._token(word))
            depth += -1 if word in OPERATORS else 1
            _need(1 <= depth <= spec.MAX_DEPTH, "an expression does not add up")
        _need(depth == 1, "an expression does not add up")
        return tuple(code)

    def _token(self, word: str) -> Axis:
        if word[:1].isdigit():
            return _integer(word)
        _need(word in OPERATORS or word in self.sizes, "an expression has a word that is neither operator nor size")
        return word

    def arg(self, words: list[str]) -> None:
        _need(len(words) >= 4, "an arg has a name, a type, a multiple and a kind")
        name = _fits(_NAME, words[0], "a name is none")
        pointer = words[1] in spec.POINTERS
        _need(pointer or words[1] in spec.SCALARS, "the type of an arg is unknown")
        _need(all(name != a.name for a in self.arguments), "a name is there twice")
        _need(len(self.arguments) < spec.MAX_ARGUMENTS, "there are too many args")
        multiple = _integer(words[2], 1024)
        _need(multiple > 0, "a multiple is 0")
        bare = Argument(name, words[1], multiple, words[3])
        made = self._sourced(bare, words[4:], pointer)
        self.arguments.append(made)
        end = offsets(self.arguments)[-1] + size_of(made)
        _need(end <= MAX_PARAM_BYTES, "the args have more than 512 bytes")

    def _sourced(self, bare: Argument, rest: list[str], pointer: bool) -> Argument:
        """With where its value comes from: ``rest``, the words behind the kind."""
        if bare.kind == "tensor":
            known = len(rest) == 1 and any(rest[0] == x.name for x in (*self.inputs, *self.outputs))
            _need(pointer and known, "an arg of kind tensor is a pointer to one")
            return replace(bare, source=rest[0])
        if bare.kind == "attr":
            known = len(rest) == 2 and rest[0] in self.attributes
            _need(bare.type == "fp32" and known, "an arg of kind attr is an fp32, an attr and a factor")
            return replace(bare, source=rest[0], factor=float(_fits(_FLOAT, rest[1], "a factor is not written as 1.5")))
        if bare.kind == "int":
            _need(bare.type in ("i32", "i64"), "an arg of kind int is an i32 or i64")
            return replace(bare, code=self._code(rest))
        known = bare.kind == "null" and pointer and not rest
        _need(known, "the kind of an arg is unknown, or does not go with its type")
        return bare

    def cubin(self, words: list[str]) -> None:
        _need(len(words) == 9, "a cubin has 9 words")
        target = _fits(_TARGET, words[0], "a target is not written as sm_89")
        _need(all(target != c.target for c in self.cubins), "a target is there twice")
        file = _fits(_CASE, words[1], "a file is no plain name")
        num_bytes, registers = _integer(words[2], 1 << 30), _integer(words[5], 255)
        shared, warps = _integer(words[6], 1 << 20), _integer(words[7], 32)
        _fits(_SHA256, words[3], "a SHA-256 is none")
        _fits(_SOURCE, words[4], "a digest of sources is none")
        _need(warps > 0, "there are no warps")
        entry = _fits(_NAME, words[8], "a name is none")
        self.cubins.append(
            Cubin(target, file, num_bytes, words[3], words[4], registers, shared, warps, entry),
        )


def _take(words: list[str], kernels: list[_Draft]) -> None:
    """One line behind the second."""
    _need(words[0] in _ORDER, "a line begins with an unknown word")
    if words[0] == "kernel":
        _need(len(words) == 3, "a kernel has an op and a case")
        op = _fits(_NAME, words[1], "a name is none")
        case = _fits(_CASE, words[2], "a case is no plain name")
        if kernels:
            kernels[-1].close()
        _need(all((op, case) != (k.op, k.case) for k in kernels), "a kernel is there twice")
        kernels.append(_Draft(op, case))
        return
    _need(bool(kernels), "a line stands before the first kernel")
    draft, stage = kernels[-1], _ORDER.index(words[0])
    _need(stage >= draft.stage, "a line is not where it belongs in its kernel")
    draft.stage = stage
    takes: Mapping[str, Callable[[list[str]], None]] = {
        "attr": draft.attr,
        "in": lambda rest: draft.tensor(rest, output=False),
        "out": lambda rest: draft.tensor(rest, output=True),
        "require": draft.require,
        "grid": draft.grid,
        "arg": draft.arg,
        "cubin": draft.cubin,
    }
    takes[words[0]](words[1:])

"""Manifests: rules held to what the ops launch, cubins to their rules, files to being whole."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import ROOT, example, parameters

from glimt_kernels.ada_norm import triton as ada
from glimt_kernels.attention import triton as attend
from glimt_kernels.manifest import build
from glimt_kernels.manifest.__main__ import main
from glimt_kernels.manifest.expressions import compiled, evaluate
from glimt_kernels.manifest.forms import OPS, Form, forms
from glimt_kernels.manifest.launch import find, launch, offsets, size_of
from glimt_kernels.manifest.spec import FILE, LaunchError, Manifest, ManifestError
from glimt_kernels.manifest.text import dump
from glimt_kernels.norm import triton as norm
from glimt_kernels.qk_norm_rope import triton as rope
from glimt_kernels.triton_env import ABSENT

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MODULES = {"ada_norm": ada, "layer_norm": norm, "rms_norm": norm, "qk_norm_rope": rope}
CALLS = {
    "ada_norm": ada.ada_norm,
    "layer_norm": norm.layer_norm,
    "rms_norm": norm.rms_norm,
    "qk_norm_rope": rope.qk_norm_rope,
    "attention": lambda q, k, v, scale, out: attend.attention(q, k, v, scale, None, out),
    "attention_bias": lambda q, k, v, bias, scale, out: attend.attention(q, k, v, scale, bias, out),
}


# ---- rules -----------------------------------------------------------------------------------------------------------


class Recorded:
    """In the place of a kernel: keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names
        self.grid: tuple[int, ...] = ()
        self.values: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def take(*args: Any, **named: Any) -> None:
            self.grid = grid
            self.values = dict(zip(self.arg_names, args, strict=False)) | named

        return take


def record(form: Form, tensors: Sequence[torch.Tensor], value: float, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What ``<op>/triton.py`` launches for a call."""
    op, count = form.kernel.op, len(form.kernel.inputs)
    module = MODULES.get(op, attend)
    recorded = Recorded(module._kernel)
    out: Any = tensors[count] if len(tensors) == count + 1 else tensors[count:]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_kernel", recorded)
        CALLS[op](*tensors[:count], value, out=out)
    return recorded


def unpacked(form: Form, params: bytes) -> dict[str, Any]:
    codes = {"i32": "<i", "i64": "<q", "fp32": "<f"}
    places = zip(form.kernel.arguments, offsets(form.kernel.arguments), strict=True)
    return {a.name: struct.unpack_from(codes.get(a.type, "<Q"), params, at)[0] for a, at in places}


sizes = st.integers(1, 4)


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_rule_launches_what_the_op_launches(op: str, data: st.DataObject) -> None:
    """Grid, each number, each address, constants and warps, on contiguous tensors of any size."""
    form = data.draw(st.sampled_from(forms([op], [(4, 64), (12, 128)])))
    chosen = {name: data.draw(sizes) for name in "BNLH"}
    of = {"G": "B", "K": "B", "M": "N", "L": "N"} if op == "ada_norm" else {}
    for name, whole in of.items():  # a modulation may be one for all samples, or for all tokens
        chosen[name] = data.draw(st.sampled_from([1, chosen[whole]]))
    shapes = [tuple(a if isinstance(a, int) else chosen[a] for a in x.axes) for x in form.kernel.tensors]
    tensors = [torch.zeros(s, dtype=TORCH[x.dtype]) for s, x in zip(shapes, form.kernel.tensors, strict=True)]
    value = data.draw(st.floats(2**-20, 2.0, width=32))
    with pytest.MonkeyPatch.context() as patch:
        recorded = record(form, tensors, value, patch)
    addresses = [x.data_ptr() // 16 * 16 for x in tensors]  # PyTorch's are multiples of 64
    assert addresses == [x.data_ptr() for x in tensors]
    found = launch(form.kernel, shapes, addresses, {form.kernel.attributes[0]: value})
    assert recorded.grid == (found.grid,)
    told = unpacked(form, found.params)
    compiled_for = form.build(80)
    for name, asked in recorded.values.items():
        if name in compiled_for.constants:
            assert compiled_for.constants[name] == asked, name
        elif isinstance(asked, torch.Tensor):
            assert told[name] == asked.data_ptr(), name
        elif isinstance(asked, float):
            assert told[name] == struct.unpack("<f", struct.pack("<f", asked))[0], name
        elif name in told:
            assert told[name] == asked, name
    assert recorded.values["num_warps"] == compiled_for.num_warps
    assert recorded.values.get("num_stages", compiled_for.num_stages) == compiled_for.num_stages
    assert set(told) - set(recorded.values) == {"global_scratch", "profile_scratch"}


def test_a_tensors_type_is_that_of_the_pointer_to_it() -> None:
    """But where a pointer is never read: those pass another tensor, as the op does."""
    for form in forms():
        dtypes = {x.name: x.dtype for x in form.kernel.tensors}
        for a in form.kernel.arguments:
            if a.kind == "tensor" and a.name in dtypes:
                assert (a.source, a.type) == (a.name, f"*{dtypes[a.name]}"), (form.kernel.op, a)
            elif a.kind == "tensor":
                assert a.name in ("residual", "order", "gate", "stream", "row_scales", "bias", "lse"), (
                    form.kernel.op,
                    a,
                )


def test_what_a_kernel_does_not_take() -> None:
    norm_of = next(k for k in example().kernels if k.op == "ada_norm")
    x, one = [2, 3, 256], [1, 1, 256]

    def refused(*shapes: list[int], address: int = 0) -> str:
        with pytest.raises(LaunchError) as caught:
            launch(norm_of, shapes, [address] * len(shapes), {"eps": 1e-6})
        return str(caught.value)

    assert launch(norm_of, [x, one, one, x], [0] * 4, {"eps": 1e-6}).grid == 6
    assert launch(norm_of, [[0, 3, 256], one, one, [0, 3, 256]], [0] * 4, {"eps": 1e-6}).grid == 0
    assert refused(x, one, one) == "the number of tensors is another"
    assert refused(x, one, one, [2, 256]) == "a tensor has another number of axes"
    assert refused(x, one, [1, 1, 255], x) == "a size is not the one that the kernel was compiled for"
    assert refused(x, one, one, [2, 4, 256]) == "sizes that must be equal differ"
    assert refused(x, [1, 2, 256], one, x) == "a requirement of the kernel does not hold"
    assert refused([-1, 3, 256], one, one, x) == "a size is negative"
    assert refused([1 << 20, 1 << 20, 256], one, one, [1 << 20, 1 << 20, 256]) == "the grid is too large"
    assert refused([1 << 40, 1 << 40, 256], one, one, [1 << 40, 1 << 40, 256]) == "a number overflows"
    assert refused(x, one, one, x, address=8) == "an address is not the multiple that the kernel was compiled for"


def test_a_kernel_is_found_by_dtypes_and_shapes_and_every_other_says_why_not() -> None:
    made = [k for shape in ((4, 64), (12, 128)) for k in example(shape).kernels if k.op == "rms_norm"]
    manifest = Manifest("triton 3.7.1", tuple(made))
    shapes = [[1, 5, 1536], [1536], [1, 5, 1536]]
    assert find(manifest, "rms_norm", ["bf16"] * 3, shapes).case == "bf16-1536"
    with pytest.raises(ManifestError, match=r"bf16-256: the dtypes are others; bf16-1536: the dtypes are others"):
        find(manifest, "rms_norm", ["fp16"] * 3, shapes)
    with pytest.raises(ManifestError, match=r"bf16-256: a size is not the one"):
        find(manifest, "rms_norm", ["bf16"] * 3, [[1, 5, 99], [99], [1, 5, 99]])
    with pytest.raises(ManifestError, match="no kernel of sums takes such a call: there is none of that name"):
        find(manifest, "sums", [], [])


Meant = tuple[str, Callable[[int, int], int]]  # an expression, and what it is of B and N
MEANINGS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "==": lambda x, y: int(x == y),
    "!=": lambda x, y: int(x != y),
    "and": lambda x, y: int(bool(x) and bool(y)),
    "or": lambda x, y: int(bool(x) or bool(y)),
}


def expressions() -> st.SearchStrategy[Meant]:
    numbers = st.integers(0, 99).map(lambda n: (str(n), lambda b, _, n=n: n))
    leaves: st.SearchStrategy[Any] = st.one_of(numbers, st.just(("B", lambda b, n: b)), st.just(("N", lambda b, n: n)))

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        def joined(op: str, x: Meant, y: Meant) -> Meant:
            return f"({x[0]} {op} {y[0]})", lambda b, n: MEANINGS[op](x[1](b, n), y[1](b, n))

        def divided(x: Meant, by: int) -> Meant:
            return f"cdiv({x[0]}, {by})", lambda b, n: math.ceil(Fraction(x[1](b, n), by))

        pairs = st.builds(joined, st.sampled_from(list(MEANINGS)), inner, inner)
        return st.one_of(pairs, st.builds(divided, inner, st.integers(1, 9)))

    return st.recursive(leaves, wider, max_leaves=6)


@given(expressions(), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None)
def test_an_expression_is_what_its_parts_make_it(meant: Meant, b: int, n: int) -> None:
    assert evaluate(compiled(meant[0]), {"B": b, "N": n}) == meant[1](b, n)


def test_an_expression_of_several_terms_keeps_pythons_order() -> None:
    for text, value in {
        "2 + 3 * 4": 14,
        "9 - 3 - 2": 4,
        "1 == 1 or 0": 1,
        "0 or 0 or 5": 1,
        "2 * 3 == 6 and 1": 1,
    }.items():
        assert evaluate(compiled(text), {}) == value, text


@pytest.mark.parametrize(
    "text", ["B // 2", "B < 2", "B == N == 2", "-B", "f(B)", "B if N else 1", "1.5", "True", "'B'"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match="a rule of a launch has no such expression"):
        compiled(text)


# ---- compiling -------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path, package: Path = ROOT / "kernels", **around: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of the command in a process where Triton compiles and does not interpret."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env = {**kept, "GLIMT_TRITON": "1", "PYTHONPATH": str(package), **around}
    line = [sys.executable, "-m", "glimt_kernels.manifest", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


OPS_CHOSEN = ("--op", "rms_norm", "--op", "attention_bias")
CHOSEN = (*OPS_CHOSEN, "--shape", "4x64", "--dtype", "bf16", "--arch", "80", "--arch", "90")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("manifest") / "kernels"
    code, says, errors = command("--out", made, *CHOSEN)
    assert code == 0, errors
    assert "2 kernels, 4 cubins" in says and "for sm_80, sm_90a" in says
    return made


def test_the_command_writes_what_it_can_read_and_nothing_else(folder: Path) -> None:
    manifest = build.verify(folder)
    assert [(k.op, k.case) for k in manifest.kernels] == [("attention_bias", "bf16-64"), ("rms_norm", "bf16-256")]
    cubins = [c for k in manifest.kernels for c in k.cubins]
    assert {path.name for path in folder.iterdir()} == {FILE, *(c.file for c in cubins)}
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    assert all(0 < c.registers <= 255 and c.warps in (1, 2, 4, 8, 16) for c in cubins)
    code, says, errors = command("--verify", folder)
    assert (code, errors) == (0, "") and "2 kernels, 4 cubins" in says


def test_the_same_bytes_from_another_place_without_what_was_compiled_before(folder: Path, tmp_path: Path) -> None:
    """No path, no time, no order of a process is in them."""
    package = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels/glimt_kernels", package / "glimt_kernels", ignore=ignored)
    around = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "7"}
    code, _, errors = command("--out", tmp_path / "again", *CHOSEN, package=package, **around)
    assert code == 0, errors
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
    for path in folder.iterdir():
        assert str(ROOT).encode() not in path.read_bytes() and b"triton.py" not in path.read_bytes()


def test_the_cubins_take_the_parameters_that_the_manifest_packs(folder: Path) -> None:
    """Offsets and sizes, read from the machine code's own description."""
    manifest = build.read_manifest(folder)
    for kernel in manifest.kernels:
        packed = list(zip(offsets(kernel.arguments), map(size_of, kernel.arguments), strict=True))
        for cubin in kernel.cubins:
            assert parameters(build.read_cubin(folder, cubin), cubin.entry) == packed, cubin.file


PTX = ".visible .entry _kernel(\n\t.param .u64 .ptr .global a,\n\t.param .f32 b\n)\n.reqntid 128\n{ .param .b64 c; }"


def test_a_kernel_that_the_rules_cannot_launch_is_refused() -> None:
    kernel = example().kernels[0]
    two = (kernel.arguments[0], dataclasses.replace(kernel.arguments[6], type="fp32"))
    good = {
        "num_warps": 4,
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "tensordesc_meta": [],
        "cluster_dims": (1, 1, 1),
    }

    def wrong(ptx: str = PTX, arguments: Any = two, **changes: Any) -> list[str]:
        return build._unlaunchable(SimpleNamespace(**{**good, **changes}), ptx, arguments)

    assert wrong() == []
    assert wrong(global_scratch_size=8) == ["it needs global_scratch_size"]
    assert wrong(tensordesc_meta=[{}]) == ["it needs tensordesc_meta"]
    assert wrong(cluster_dims=(2, 1, 1)) == ["it is launched in clusters"]
    assert wrong(num_warps=8) == ["it wants blocks of 128 threads, not 8 warps"]
    assert wrong(arguments=two[:1]) == ["its parameters have [8, 4] bytes, the rules say [8]"]
    assert wrong(arguments=two[::-1]) == ["its parameters have [8, 4] bytes, the rules say [4, 8]"]


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(folder, tmp_path / "copy")


def test_every_file_that_is_wrong_is_named(copy: Path) -> None:
    files = sorted(path for path in copy.iterdir() if path.name != FILE)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].write_bytes(b"\0" + files[2].read_bytes()[1:])
    with pytest.raises(ManifestError) as caught:
        build.verify(copy)
    lines = sorted(str(caught.value).splitlines())
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in files[:3]]
    for line, says in zip(
        lines, ("is missing; write", "bytes were written; write", "its SHA-256 is not that"), strict=True
    ):
        assert says in re.sub(r"has \d+ bytes, \d+ were", "bytes were", line)
    code, _, errors = command("--verify", copy)
    assert code == 1 and "Traceback" not in errors and errors.count(str(copy)) == 3


def test_nothing_is_left_of_a_folder_that_could_not_be_filled(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), build.staged(tmp_path / "out") as staging:
        (staging / "half").write_bytes(b"x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ManifestError, match=r"cannot be written: .*; nothing was kept"),
        build.staged(tmp_path / "out") as staging,
    ):
        (staging / "x" / "y").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_something_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("kept")
    with pytest.raises(ManifestError, match="is there already and not empty"), build.staged(tmp_path / "out"):
        raise AssertionError("nothing is compiled for it")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_the_command_cannot_do_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "INTERPRETED", True)
    out = ("--out", str(tmp_path / "a"))
    for arguments, says in {
        (*out, "--op", "attention", "--shape", "4x256"): "other blocks of queries on other chips",
        (*out, "--shape", "4by64"): "write HEADSxHEAD_DIM",
        (*out, "--op", "sums"): "invalid choice: 'sums'",
        ("--verify", str(tmp_path / "a")): "is missing; write the folder anew",
        (*out, *CHOSEN): "with TRITON_INTERPRET=1 kernels are not those that are compiled: unset it",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code and says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_breaks_its_format_is_not_written() -> None:
    kernel = example().kernels[0]
    with pytest.raises(ManifestError, match="a file is no plain name"):
        bad = dataclasses.replace(kernel.cubins[0], file="../x")
        dump(Manifest("triton 3.7.1", (dataclasses.replace(kernel, cubins=(bad,)),)))
    with pytest.raises(ManifestError, match="a name is there twice"):
        dump(Manifest("triton 3.7.1", (dataclasses.replace(kernel, arguments=kernel.arguments * 3),)))

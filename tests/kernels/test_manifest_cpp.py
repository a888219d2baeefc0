"""The two readers of manifests, in Python and in C++ (with sanitizers), hold each other: same values, same errors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import Reader, cubin, example, rendered, with_cubins, write_folder

from glimt_kernels.manifest.build import verify
from glimt_kernels.manifest.launch import Launch, choose, launch
from glimt_kernels.manifest.spec import Argument, LaunchError, Manifest, ManifestError
from glimt_kernels.manifest.text import dump, parse, sealed
from glimt_kernels.triton_env import ABSENT

if ABSENT:
    pytest.skip(f"needs Triton: {ABSENT}", allow_module_level=True)

MANIFEST = example()
TEXT = dump(MANIFEST)
LINES = TEXT.decode().splitlines()[:-1]
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# What a line may hold, and what it may not: limits, their neighbours, words of other places.
WORDS = sorted({word for line in LINES for word in line.split(" ")} | {"", "0", "00", "1", "-1", "255", "256", "1024"})
WORDS += ["1025", "9223372036854775807", "9223372036854775808", "99999999999999999999", "1.5", "1.", ".5", "1e3", "nan"]
WORDS += [
    "and",
    "or",
    "-",
    "cdiv",
    "N" * 17,
    "x" * 64,
    "x" * 65,
    "a/b",
    "../x",
    ".x",
    "sm_9",
    "sm_90",
    "sm_1000",
    "\t",
    "é",
]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def agree(reader: Reader, content: bytes) -> str:
    """Both read ``content`` as the same, or refuse it with the same words; which words ("" for none)."""
    went, says = reader.parse(content)
    try:
        found = parse(content)
    except ManifestError as error:
        assert (went, says) == (False, str(error))
        return says
    assert (went, says) == (True, rendered(found))
    return ""


def test_sha256_is_that_of_python_at_every_length_of_a_block(reader: Reader) -> None:
    source = random.Random(7)
    for length in (*range(1, 200), 1 << 12, (1 << 16) + 1):
        content = source.randbytes(length)
        assert reader.ask("sha256", content.hex()) == (True, hashlib.sha256(content).hexdigest())
    assert reader.ask("sha256") == (True, hashlib.sha256(b"").hexdigest())


def test_every_value_arrives(reader: Reader) -> None:
    assert agree(reader, TEXT) == ""
    assert parse(TEXT) == MANIFEST


@given(st.data())
@fuzzed
def test_changed_lines_are_read_alike_or_refused_with_the_same_words(reader: Reader, data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["word", "word", "word", "gone", "more", "drop", "twice", "swap"]))
        words = lines[at].split(" ")
        if change in ("word", "gone", "more"):
            place = data.draw(st.integers(0, len(words) - 1))
            new = [] if change == "gone" else [data.draw(st.sampled_from(WORDS))]
            words[place : place + (change != "more")] = new
            lines[at] = " ".join(words)
        elif change == "drop":
            del lines[at]
        elif change == "twice":
            lines.insert(data.draw(st.integers(0, len(lines))), lines[at])
        else:
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
    agree(reader, sealed("".join(f"{line}\n" for line in lines).encode()))


@given(st.binary(max_size=300), st.booleans(), st.integers(0, len(TEXT)))
@fuzzed
def test_any_bytes_are_answered(reader: Reader, junk: bytes, seal: bool, keep: int) -> None:
    for content in (junk, TEXT[:keep] + junk):
        agree(reader, sealed(content) if seal else content)


def test_every_rule_is_there_in_both(reader: Reader) -> None:
    """Each broken alone: the sentence says which, so that a rule that only one of them has would show."""
    attention, norm = TEXT.decode(), "\n".join(LINES)
    broken = {
        "the format is another than 1, which this version reads": ("glimt-kernels 1", "glimt-kernels 2"),
        "the file does not begin with 'glimt-kernels'": ("glimt-kernels 1", "glimt 1"),
        "the second line must name the compiler": ("compiler triton", "compiler  triton"),
        "a line begins with an unknown word": ("grid N 128", "grids N 128"),
        "a kernel is there twice": ("kernel attention_bias bf16-64", "kernel attention bf16-64"),
        "a name is there twice": ("in k bf16 B L H 64", "in q bf16 B L H 64"),
        "a dtype is none of fp32, fp16, bf16": ("in k bf16 B L H 64", "in k fp8 B L H 64"),
        "a size is neither a number nor a name in capitals": ("in k bf16 B L", "in k bf16 B l"),
        "an output has the axes of no input": ("out out bf16 B N H 64", "out out bf16 B N 64"),
        "an expression does not add up": ("grid N 128 cdiv", "grid N cdiv"),
        "an expression has a word that is neither operator nor size": ("require L", "require M"),
        "an arg of kind tensor is a pointer to one": ("16 tensor q", "16 tensor r"),
        "an arg of kind attr is an fp32, an attr and a factor": ("attr scale 1.44", "attr eps 1.44"),
        "an arg of kind int is an i32 or i64": ("arg tokens i32 1 int", "arg tokens fp32 1 int"),
        "the type of an arg is unknown": ("arg tokens i32", "arg tokens i16"),
        "a multiple is 0": ("arg q *bf16 16", "arg q *bf16 0"),
        "a factor is not written as 1.5": ("attr scale 1.44", "attr scale 1e44"),
        "a target is not written as sm_89": ("cubin sm_80", "cubin 80"),
        "a target is there twice": ("cubin sm_90a", "cubin sm_80"),
        "a file is no plain name": ("attention-bf16-64.sm_80", "../attention-bf16-64.sm_80"),
        "there are no warps": ("1024 4 _kernel", "1024 0 _kernel"),
    }
    for says, (old, new) in broken.items():
        assert old in norm, says
        assert agree(reader, sealed(f"{norm.replace(old, new, 1)}\n".encode())).endswith(f": {says}"), says
    cut = attention[: attention.index("cubin")]
    assert agree(reader, sealed(cut.encode())).endswith("the kernel before has not all of: in, out, grid, arg, cubin")


def test_limits_are_the_same_on_both_sides_of_each(reader: Reader) -> None:
    def swapped(old: str, new: str) -> str:
        text = "\n".join(LINES)
        assert old in text
        return agree(reader, sealed(f"{text.replace(old, new, 1)}\n".encode()))

    deep = "N " * 8 + "+ " * 7
    assert swapped("grid N 128 cdiv B * H *", f"grid {deep}".strip()) == ""
    assert swapped("grid N 128 cdiv B * H *", f"grid N {deep}+") != ""
    long = "N" + " 1 +" * 23
    assert swapped("grid N 128 cdiv B * H *", f"grid {long}") == ""
    assert swapped("grid N 128 cdiv B * H *", f"grid {long} 1 +") != ""
    axes = " ".join(f"A{i}" for i in range(8))
    assert swapped("in k bf16 B L H 64", f"in k bf16 B L {axes}"[: len("in k bf16 B L ") + 6 * 3 - 1]) == ""
    assert swapped("in k bf16 B L H 64", f"in k bf16 B L {axes}") != ""
    args = "".join(f"arg more{i} i64 1 int N\n" for i in range(40))
    assert "too many args" in swapped("arg global_scratch", f"{args}arg global_scratch")


def shapes_of(data: st.DataObject, index: int) -> list[list[int]]:
    """Mostly such as fit the kernel."""
    size = st.one_of(st.integers(0, 5), st.sampled_from([-1, 77, 32760, 1 << 20, 1 << 31, 1 << 62]))
    names: dict[str | int, int] = {}
    shapes = [
        [axis if isinstance(axis, int) else names.setdefault(axis, data.draw(size)) for axis in tensor.axes]
        for tensor in MANIFEST.kernels[index].tensors
    ]
    if data.draw(st.integers(0, 3)) == 0:  # one thing is wrong
        shape = data.draw(st.sampled_from(shapes))
        what = data.draw(st.sampled_from(["size", "axis", "tensor"]))
        if what == "size":
            shape[data.draw(st.integers(0, len(shape) - 1))] = data.draw(size)
        elif what == "axis":
            shape.append(1)
        else:
            shapes.append([1])
    return shapes


@given(st.data())
@fuzzed
def test_launches_are_the_same_to_the_byte_or_refused_with_the_same_words(reader: Reader, data: st.DataObject) -> None:
    assert reader.parse(TEXT)[0]
    index = data.draw(st.integers(0, len(MANIFEST.kernels) - 1))
    kernel, shapes = MANIFEST.kernels[index], shapes_of(data, index)
    addresses = [
        data.draw(st.integers(0, (1 << 60) - 1)) * data.draw(st.sampled_from([16, 16, 16, 8])) for _ in range(16)
    ]
    factor = data.draw(st.one_of(st.floats(width=32), st.floats()))
    found = reader.launch(index, shapes, addresses, [factor])
    try:
        asked = launch(kernel, shapes, addresses[: len(kernel.tensors)], dict.fromkeys(kernel.attributes, factor))
    except LaunchError as error:
        assert found == str(error)
        return
    assert isinstance(found, Launch)
    if math.isnan(factor):  # a NaN has many patterns
        (nan,) = (a for a in kernel.arguments if a.kind == "attr")
        assert nan and len(found.params) == len(asked.params) and found.grid == asked.grid
    else:
        assert found == asked


targets = st.integers(75, 121).flatmap(lambda n: st.sampled_from([f"sm_{n}", f"sm_{n}a"]))


@given(st.lists(targets, min_size=1, max_size=6, unique=True), st.integers(70, 125))
@fuzzed
def test_the_same_cubin_is_chosen_for_every_chip(reader: Reader, there: list[str], chip: int) -> None:
    kernel = with_cubins(MANIFEST.kernels[0], there)
    assert reader.parse(dump(Manifest("triton 3.7.1", (kernel,))))[0]
    went, says = reader.ask("choose", 0, chip)
    try:
        found = choose(kernel, chip)
    except ManifestError as error:
        assert (went, says) == (False, str(error))
        return
    assert (went, says) == (True, found.target)
    number = int(found.target.strip("sm_a"))
    assert number // 10 == chip // 10 and number <= chip
    assert not found.target.endswith("a") or number == chip


def test_which_chips_run_what(reader: Reader) -> None:
    kernel = with_cubins(MANIFEST.kernels[0], ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
    assert reader.parse(dump(Manifest("triton 3.7.1", (kernel,))))[0]
    runs = {80: "sm_80", 86: "sm_86", 87: "sm_86", 89: "sm_89", 90: "sm_90a", 100: "sm_100a", 120: "sm_120a"}
    for chip, target in runs.items():
        assert reader.ask("choose", 0, chip) == (True, target)
    for chip in (75, 103, 121):  # code for one chip alone runs on no later one
        went, says = reader.ask("choose", 0, chip)
        assert not went and f"no cubin for sm_{chip}; it has sm_80, sm_86" in says


def test_files_that_are_not_what_was_written_are_refused_with_the_same_words(reader: Reader, tmp_path: Path) -> None:
    def both(folder: Path) -> str:
        went, says = reader.ask("folder", folder)
        if went:
            assert verify(folder) == MANIFEST
            return ""
        with pytest.raises(ManifestError) as caught:
            verify(folder)
        assert str(caught.value) == says
        return says

    def folder(name: str) -> Path:
        return write_folder(tmp_path / name, MANIFEST)

    assert both(folder("whole")) == ""
    first = MANIFEST.kernels[0].cubins[0].file
    (folder("missing") / first).unlink()
    assert f"{first}: is missing; write the folder anew" in both(tmp_path / "missing")
    path = folder("short") / first
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{first}: has {len(path.read_bytes())} bytes, " in both(tmp_path / "short")
    path = folder("tampered") / first
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert f"{first}: its SHA-256 is not that of what was written" in both(tmp_path / "tampered")
    (folder("none") / "kernels.manifest").unlink()
    assert "kernels.manifest: is missing" in both(tmp_path / "none")
    (folder("cut") / "kernels.manifest").write_bytes(TEXT[:-9])
    assert "the file was cut short" in both(tmp_path / "cut")
    (folder("changed") / "kernels.manifest").write_bytes(TEXT.replace(b"sm_80", b"sm_86", 1))
    assert "the file was changed after it was written" in both(tmp_path / "changed")
    assert "is missing" in both(tmp_path / "nowhere")


def test_a_parameter_lies_where_its_size_divides(reader: Reader) -> None:
    """i32, then i64: four bytes of nothing between them, which are zeros."""
    norm = next(k for k in MANIFEST.kernels if k.op == "rms_norm")
    small = Argument("n", "i32", 1, "int", code=(7,))
    wide = dataclasses.replace(small, name="w", type="i64", code=(9,))
    kernel = dataclasses.replace(norm, arguments=(small, wide), cubins=(cubin("sm_80", "x"),))
    assert reader.parse(dump(Manifest("triton 3.7.1", (kernel,))))[0]
    found = reader.launch(0, [[1, 2, 256], [256], [1, 2, 256]], [0, 0, 0], [1.0])
    assert isinstance(found, Launch)
    assert found.params == struct.pack("<i4xq", 7, 9) and found.grid == 2

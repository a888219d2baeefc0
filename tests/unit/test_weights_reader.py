"""Tensors come out of checkpoint files as they went in, or one CheckpointError says everything that is wrong."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from glimt.errors import CheckpointError
from glimt.weights.assign import has_nonfinite, load_into, meta_parameters
from glimt.weights.header import read_headers, scan, weight_files
from glimt.weights.reader import open_files


class Tiny(nn.Module):
    """A module with a parameter in a submodule, an integer buffer, a buffer in no file, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(7, 3)
        self.inner = nn.ModuleDict({"tied": nn.Embedding(7, 3), "norm1": nn.LayerNorm(3), "up": nn.Linear(3, 5)})
        self.inner["tied"].weight = self.shared.weight
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def tiny_state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"shared.weight": (7, 3), "inner.norm1.weight": (3,), "inner.norm1.bias": (3,)}
    shapes |= {"inner.up.weight": (5, 3), "inner.up.bias": (5,)}
    return {k: torch.randn(v).to(dtype) for k, v in shapes.items()} | {"count": torch.tensor([3, 4])}


def load_tiny(file: Path, **options: object) -> nn.Module:
    with meta_parameters():
        module = Tiny()
    return load_into(module, open_files([file]), what="tiny", **options)  # type: ignore[arg-type]


def problems_of(file: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        load_tiny(file, **options)
    return caught.value.problems


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_are_those_that_safetensors_wrote(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.arange(-7, 8).view(3, 5).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    state |= {"empty": torch.empty(0, 4, dtype=dtype), "odd": torch.ones(1, 1, 3).to(dtype)}
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    source = open_files([tmp_path / "x.safetensors"])
    assert set(source.entries) == set(state)
    for name, tensor in state.items():
        assert source.tensor(name).dtype == dtype
        assert torch.equal(source.tensor(name), tensor)
        source.release(name)
        assert torch.equal(source.tensor(name), tensor)


def test_equal_dtype_is_a_view_of_the_file_and_writing_to_it_stays_private(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(4096)}, file)
    source = open_files([file])
    first, again = source.tensor("w"), source.tensor("w")
    assert first.data_ptr() == again.data_ptr()
    first.fill_(5)
    assert torch.equal(load(file.read_bytes())["w"], torch.ones(4096))
    assert torch.equal(open_files([file]).tensor("w"), torch.ones(4096))


def test_unaligned_tensors_are_copied_to_where_they_are_aligned(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    header += b" " * (8 - len(header) % 8 + 3)
    file = raw_file(tmp_path / "x.safetensors", header, torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes())
    tensor = open_files([file]).tensor("w")
    assert tensor.data_ptr() % 4 == 0
    assert tensor.tolist() == [1, 2, 3]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_a_module_gets_every_tensor_in_the_dtype_asked_for(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype | None
) -> None:
    state = tiny_state(stored)
    save_file(state, tmp_path / "x.safetensors")
    module = load_tiny(tmp_path / "x.safetensors", dtype=wanted, keep_in_fp32=["norm1"])
    for name, tensor in module.state_dict().items():
        source = state["shared.weight" if name == "inner.tied.weight" else name]
        expected = source.dtype if name == "count" else torch.float32 if "norm1" in name else wanted or stored
        assert tensor.dtype == expected
        assert torch.equal(tensor, source.to(expected))
    assert module.shared.weight is module.inner["tied"].weight
    assert torch.equal(module.table, torch.arange(4.0))
    assert not any(p.requires_grad for p in module.parameters())


def test_every_mismatch_is_in_one_error(tmp_path: Path) -> None:
    state = tiny_state()
    state["inner.up.wieght"] = state.pop("inner.up.weight")
    state["inner.norm1.bias"] = torch.zeros(4)
    state["count"] = torch.zeros(2)
    state["stranger"] = torch.zeros(1)
    save_file(state, tmp_path / "x.safetensors")
    text = "\n".join(problems_of(tmp_path / "x.safetensors"))
    assert "'inner.up.weight' is missing; did you mean 'inner.up.wieght'" in text
    assert "'inner.up.wieght' is extra" in text and "'stranger' is extra" in text
    assert "'inner.norm1.bias' has shape [4] in the file, [3] in the model" in text
    assert "'count' is stored as F32, the model has int64" in text
    assert load_tiny_with_ignored(tmp_path)


def load_tiny_with_ignored(folder: Path) -> bool:
    save_file(tiny_state() | {"inner.norm_added_q.weight": torch.zeros(1)}, folder / "i.safetensors")
    return isinstance(load_tiny(folder / "i.safetensors", ignore=["norm_added_q"]), Tiny)


def test_long_lists_are_cut_with_counts_and_quick_to_report(tmp_path: Path) -> None:
    save_file({f"layer.{i}.q": torch.zeros(1) for i in range(3000)}, tmp_path / "x.safetensors")
    with meta_parameters():
        module = nn.ParameterDict({f"layer_{i}_k": torch.empty(1) for i in range(3000)})
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        load_into(module, open_files([tmp_path / "x.safetensors"]), what="big")
    assert time.perf_counter() - start < 5
    assert len(caught.value.problems) <= 26
    assert any("2988 more tensors are missing (3000 of 3000 in all)" in p for p in caught.value.problems)


def test_tied_weights_may_come_under_either_name_and_must_agree_under_both(tmp_path: Path) -> None:
    state = tiny_state()
    weight = state.pop("shared.weight")
    save_file(state | {"inner.tied.weight": weight}, tmp_path / "one.safetensors")
    assert torch.equal(load_tiny(tmp_path / "one.safetensors").shared.weight, weight)
    save_file(state | {"inner.tied.weight": weight, "shared.weight": weight.clone()}, tmp_path / "both.safetensors")
    assert torch.equal(load_tiny(tmp_path / "both.safetensors").shared.weight, weight)
    save_file(state | {"inner.tied.weight": weight, "shared.weight": weight + 1}, tmp_path / "differ.safetensors")
    assert "are one in the model and differ" in problems_of(tmp_path / "differ.safetensors")[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, bad: float) -> None:
    for size in (1, 7, 1000):
        for place in {0, size // 2, size - 1}:
            tensor = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
            assert not has_nonfinite(tensor)  # a sum would overflow here
            tensor[place] = bad
            assert has_nonfinite(tensor)


def test_nan_weights_are_named(tmp_path: Path) -> None:
    state = tiny_state()
    state["inner.up.bias"][2] = float("nan")
    state["shared.weight"][6, 2] = float("inf")
    save_file(state, tmp_path / "x.safetensors")
    assert problems_of(tmp_path / "x.safetensors") == (
        "tiny: tensor 'shared.weight' has NaN or infinite values",
        "tiny: tensor 'inner.up.bias' has NaN or infinite values",
    )


SPAN = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": SPAN | {"dtype": "F33"}}, 8, "unknown dtype 'F33'; did you mean 'F32'"),
        ({"a": SPAN | {"shape": [3]}}, 8, "takes 12 bytes, data_offsets give 8"),
        ({"a": SPAN | {"shape": [2.0]}}, 8, "is not a list of at most"),
        ({"a": SPAN | {"shape": [-2]}}, 8, "is not a list of at most"),
        ({"a": SPAN | {"shape": [0, 1 << 70], "data_offsets": [0, 0]}}, 0, "is not a list of at most"),
        ({"a": SPAN | {"data_offsets": [8, 0]}}, 8, "are not [begin, end]"),
        ({"a": SPAN | {"data_offsets": [True, 9]}}, 8, "are not [begin, end]"),
        ({"a": {"dtype": "F32"}}, 8, "needs exactly dtype, shape and data_offsets"),
        ({"a": SPAN, "b": SPAN | {"data_offsets": [4, 12]}}, 12, "'b' overlaps tensor 'a' by 4 bytes"),
        ({"a": SPAN, "b": SPAN | {"data_offsets": [12, 20]}}, 20, "4 bytes between tensor 'a' and tensor 'b'"),
        ({"a": SPAN}, 7, "truncated"),
        ({"a": SPAN}, 9, "1 bytes after the last tensor belong to nothing"),
        (b'{"a":{},"a":{}}', 0, "the key 'a' stands twice"),
        (b'{"a":', 0, "corrupted header"),
        (b"{" * 100_000, 0, "corrupted header"),
        (b'{"a":' + b"[" * 100_000, 0, "corrupted header"),
        (b"{\xff}", 0, "not UTF-8 at byte 1"),
        (b"[]", 0, "begins with b'['"),
    ],
)
def test_a_broken_header_is_named_with_its_file(tmp_path: Path, header: object, data: int, words: str) -> None:
    file = raw_file(tmp_path / "broken.safetensors", header, b"\0" * data)
    problem = problems_of(file)[0]
    assert words in problem and str(file) in problem


def test_all_problems_of_all_shards_are_in_one_error(tmp_path: Path) -> None:
    one = raw_file(tmp_path / "1.safetensors", {"a": SPAN | {"dtype": "F33"}, "b": SPAN | {"shape": [9]}}, b"\0" * 8)
    two = tmp_path / "2.safetensors"
    two.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_headers([one, two, tmp_path / "3.safetensors", tmp_path])
    assert len(caught.value.problems) == 5
    assert "the file is empty" in caught.value.problems[2]


def test_files_of_other_formats_are_recognised_whatever_their_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    torch.save(tiny_state(), file)
    assert "pickle" in problems_of(file)[0] and "allow_pickle=True" in problems_of(file)[0]
    file.write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in problems_of(file)[0]
    for start, word in {
        b"GGUF\x03\0\0\0": "GGUF",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    }.items():
        file.write_bytes(start.ljust(200, b"\0"))
        assert word in problems_of(file)[0]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_pickles_are_read_when_allowed_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = tiny_state(torch.bfloat16)
    for name, value in {"a.pt": state, "b.bin": {"state_dict": state}, "c.safetensors": state}.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(CheckpointError, match="allow_pickle"):
            open_files([tmp_path / name])
        source = open_files([tmp_path / name], allow_pickle=True)
        assert all(torch.equal(source.tensor(k), v) for k, v in state.items())
    torch.save({"w": torch.zeros(1), "x": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:300])
    torch.save([1], tmp_path / "list.pt")
    for name in ("evil.pt", "cut.pt", "list.pt"):
        with pytest.raises(CheckpointError, match=name):
            open_files([tmp_path / name], allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_shards_are_found_by_index_or_by_number(tmp_path: Path) -> None:
    shards = [tmp_path / f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        save_file({f"t{i}": torch.ones(i + 1)}, shard)
    assert weight_files(tmp_path, "model") == tuple(shards)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"t0": shards[0].name, "t1": shards[1].name}}))
    assert weight_files(tmp_path, "model") == tuple(shards)
    assert open_files(weight_files(tmp_path, "model")).tensor("t1").numel() == 2
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002\.safetensors', which is missing"):
        weight_files(tmp_path, "model")
    index.unlink()
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002\.safetensors' is missing"):
        weight_files(tmp_path, "model")
    assert weight_files(tmp_path, "other") == ()


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "a\0b", "x" * 5000, ".."])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(CheckpointError):
        weight_files(tmp_path, "model")


ORIGINAL = save({"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(5, dtype=torch.bfloat16)}, {"format": "pt"})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(ORIGINAL) - 1), st.integers(0, 255)), max_size=3),
    st.integers(0, len(ORIGINAL)),
    st.booleans(),
)
def test_any_mutation_gives_a_checkpoint_error_or_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int, cut: bool
) -> None:
    data = bytearray(ORIGINAL)
    for place, value in changes:
        data[place] = value
    agree_with_safetensors(
        bytes(data[:length]) if cut else bytes(data), tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    )


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda b: len(b).to_bytes(8, "little") + b))
def test_any_bytes_give_a_checkpoint_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    agree_with_safetensors(data, tmp_path_factory.getbasetemp() / "fuzz.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
spans = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "U8"]) | json_values,
        "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=3), spans | json_values, max_size=3), st.integers(0, 40))
def test_any_header_gives_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], size: int
) -> None:
    file = raw_file(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header, bytes(size))
    agree_with_safetensors(file.read_bytes(), file)


def agree_with_safetensors(data: bytes, file: Path) -> None:
    """What we read is what the format's own library reads; what we refuse is refused with a CheckpointError."""
    file.write_bytes(data)
    entries, problems = scan(file)
    try:
        expected = load(data)
    except (SafetensorError, ValueError, OverflowError, RuntimeError):
        expected = None
    if problems:
        assert all(str(file) in problem for problem in problems)
        return
    assert expected is not None, f"we accept {entries}, safetensors does not"
    source = open_files([file])
    assert set(source.entries) == set(expected)
    for name, tensor in expected.items():
        assert source.tensor(name).dtype == tensor.dtype and source.tensor(name).shape == tensor.shape
        assert (
            source.tensor(name).numpy(force=True).tobytes() == tensor.numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(source.tensor(name).view(torch.int16), tensor.view(torch.int16))
        )


MEASURE = """
import resource, sys, torch
from torch import nn
from pathlib import Path
from glimt.weights.assign import load_into, meta_parameters
from glimt.weights.reader import open_files
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.aminmax(torch.ones(2)), torch.ones(9).bfloat16().float()
with meta_parameters():
    module = nn.ModuleList([nn.Linear(1024, 4096, bias=False) for _ in range(12)])
before = peak()
load_into(module, open_files([Path(sys.argv[1])]), what="big", dtype=torch.float32)
total = sum(float(p.sum()) for p in module.parameters())
print(peak() - before, total)
"""


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_peak_memory_is_that_of_the_loaded_component(tmp_path: Path, stored: torch.dtype) -> None:
    file = tmp_path / "big.safetensors"
    save_file({f"{i}.weight": torch.ones(4096, 1024, dtype=stored) for i in range(12)}, file)
    component_bytes = 12 * 4096 * 1024 * 4
    run = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True)
    grown, total = run.stdout.split()
    assert float(total) == 12 * 4096 * 1024
    assert float(grown) <= 1.15 * component_bytes

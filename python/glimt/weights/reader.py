"""Tensors of a checkpoint, memory-mapped: safetensors always, pickles only when asked for.

A tensor of a :class:`TensorSource` is a view of the file's pages (no copy) while its offset is aligned; the mapping is
private, so writing to one never reaches the file.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from glimt.errors import CheckpointError
from glimt.weights.header import TensorEntry, other_format, read_headers

_TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Where programs that train put the tensors of a pickled checkpoint, when not at the top.
_PICKLE_ROOTS = ("state_dict", "model_state_dict", "model", "module")


class TensorSource(Protocol):
    """Named tensors that are read one at a time."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """What is there, by name, without reading it."""

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU in the dtype of the file; a view of the mapped file where that can be."""

    def release(self, name: str) -> None:
        """Let go of the memory pages of a tensor that was read; its next use reads them again."""


def is_readable(dtype: str) -> bool:
    """Whether tensors of this dtype of the format can be read (the 8-bit floats need scales, which are not)."""
    return dtype in _TORCH_DTYPES


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a dtype name of the format, for those :func:`is_readable` accepts."""
    return _TORCH_DTYPES[dtype]


def open_files(files: Sequence[Path], *, allow_pickle: bool = False) -> TensorSource:
    """The tensors of one weights file or of several shards, told apart by what is in them and not by their names.

    Raises:
        CheckpointError: files that are truncated, corrupted, or pickles without ``allow_pickle``; all in one.
    """
    pickles = [file for file in files if "pickle" in other_format(file)]
    if not pickles:
        return MappedTensors(read_headers(files))
    if not allow_pickle:
        raise CheckpointError(
            *(
                f"{file}: is {other_format(file)}; use a safetensors file, or pass allow_pickle=True"
                " (it is then read with torch.load(weights_only=True))"
                for file in pickles
            )
        )
    if len(pickles) != len(files):
        raise CheckpointError(f"{pickles[0].parent}: shards are partly pickles, partly safetensors")
    return PickledTensors(pickles)


class MappedTensors:
    """A :class:`TensorSource` over safetensors files with checked headers."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self._maps: dict[Path, mmap.mmap] = {}

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        dtype = _TORCH_DTYPES[entry.dtype]
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        pages = self._map(entry.file)
        if len(pages) < entry.end:
            raise CheckpointError(f"{entry.file}: became shorter while it was read")
        if entry.begin % dtype.itemsize:  # views of unaligned memory are not safe in every kernel
            raw = torch.frombuffer(pages, dtype=torch.uint8, offset=entry.begin, count=entry.num_bytes)
            return raw.clone().view(dtype).view(entry.shape)
        return torch.frombuffer(pages, dtype=dtype, offset=entry.begin, count=entry.numel).view(entry.shape)

    def release(self, name: str) -> None:
        entry = self.entries[name]
        pages = self._maps.get(entry.file)
        first = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if pages is not None and length > 0 and hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED, first, length)

    def _map(self, file: Path) -> mmap.mmap:
        # Each source maps for itself: releasing pages must not drop what a user of an earlier load wrote to its copy.
        if file not in self._maps:
            try:
                with file.open("rb") as stream:
                    self._maps[file] = _private_map(stream.fileno())
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{file}: cannot be mapped into memory: {error}") from error
        return self._maps[file]


def _private_map(descriptor: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    # MAP_NORESERVE (Linux: 0x4000, named in Python from 3.13 on): without it the kernel refuses a private mapping
    # that is larger than all memory, though its clean pages need none.
    flags = mmap.MAP_PRIVATE | (getattr(mmap, "MAP_NORESERVE", 0x4000) if hasattr(mmap, "MADV_DONTDUMP") else 0)
    return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


class PickledTensors:
    """A :class:`TensorSource` over files of ``torch.save``, read with the restricted unpickler."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        self.entries: dict[str, TensorEntry] = {}
        problems: list[str] = []
        for file in files:
            try:
                found = dict(_named_tensors(_unpickle(file), file))
            except CheckpointError as error:
                problems += error.problems
                continue
            problems += [f"tensor {name!r} is in two shards" for name in found if name in self._tensors]
            self._tensors.update(found)
            self.entries.update({name: _entry(name, tensor, file) for name, tensor in found.items()})
        if problems:
            raise CheckpointError(*problems)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def release(self, name: str) -> None:
        """Nothing: torch owns this mapping."""


def _unpickle(file: Path) -> object:
    # The older form cannot be mapped, and by a path's name torch would choose its own safetensors reader.
    mapped = "zip" in other_format(file) and file.suffix != ".safetensors"
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")  # notes on deprecated storage classes of old files
            return torch.load(file if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken pickle may raise anything; it all means the same
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{file}: cannot be read with torch.load(weights_only=True): {first[0]}") from error


def _named_tensors(value: object, file: Path) -> Iterator[tuple[str, Tensor]]:
    for root in _PICKLE_ROOTS:
        if isinstance(value, dict) and isinstance(value.get(root), dict):
            value = value[root]
            break
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{file}: holds a {type(value).__name__}, expected a table of named tensors")
    strange = [f"{key!r} ({type(v).__name__})" for key, v in value.items() if not isinstance(v, Tensor)]
    if strange:
        raise CheckpointError(f"{file}: holds values that are not tensors: {', '.join(strange[:8])}")
    yield from ((str(key), tensor) for key, tensor in value.items())


def _entry(name: str, tensor: Tensor, file: Path) -> TensorEntry:
    dtype = next((k for k, v in _TORCH_DTYPES.items() if v == tensor.dtype), str(tensor.dtype))
    return TensorEntry(name, dtype, tuple(tensor.shape), file, 0, tensor.numel() * tensor.element_size())

"""What a safetensors file says it holds, checked whole before any of its bytes are used. Standard library only.

Layout of the format: ``uint64 n`` (little endian), ``n`` bytes of JSON ``{name: {dtype, shape, data_offsets}}`` that
begin with ``{``, then the tensors' bytes, without gaps or overlaps, offsets counted from the end of the header.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from glimt.errors import CheckpointError
from glimt.suggest import did_you_mean

# Bytes of one element of each dtype the format has in whole bytes.
DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MAX_DIMS = 64  # what torch can hold
_MAX_SIZE = 1 << 48  # of one dimension; far above any file, far below where int64 strides overflow
_SHOWN = 12  # problems of one file that are listed before they are only counted
_NUMBERED_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")

# How files that are not safetensors begin, with what they are.
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes: a pickle, which can run code when loaded"),
    (b"\x80\x02", "a Python pickle, which can run code when loaded"),
    (b"\x80\x03", "a Python pickle, which can run code when loaded"),
    (b"\x80\x04", "a Python pickle, which can run code when loaded"),
    (b"\x80\x05", "a Python pickle, which can run code when loaded"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"<!", "a web page, most likely a failed download"),
    (b"<htm", "a web page, most likely a failed download"),
)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: ``end - begin`` bytes at absolute offset ``begin``, little endian, row major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def shorten(items: Iterable[str], shown: int = _SHOWN) -> list[str]:
    """The first ``shown`` items, and a line that counts the rest."""
    listed = list(items)
    if len(listed) <= shown + 1:
        return listed
    return [*listed[:shown], f"and {len(listed) - shown} more of the same kind"]


def read_headers(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """All tensors of one file or of several shards.

    Raises:
        CheckpointError: one for all files, naming each file and all that is wrong in it.
    """
    entries: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for file in files:
        found, wrong = scan(file)
        problems += shorten(wrong)
        for name, entry in found.items():
            if name in entries:
                problems.append(f"tensor {name!r} is both in {entries[name].file.name} and in {file}")
            entries[name] = entry
    if problems:
        raise CheckpointError(*problems)
    return entries


def scan(file: Path) -> tuple[dict[str, TensorEntry], list[str]]:
    """The tensors of one file and every problem found, each beginning with the file's path."""
    try:
        header, size, problem = _read_header(file)
    except OSError as error:
        return {}, [f"{file}: cannot be read: {error.strerror or error}"]
    table, problem = _parse(header) if not problem else ({}, problem)
    if problem:
        return {}, [f"{file}: {problem}"]
    entries, problems = _read_entries(table, file, 8 + len(header))
    if not problems:  # without every tensor's span the gaps would be reported twice
        problems = _span_problems(entries.values(), 8 + len(header), size)
    return entries, [f"{file}: {text}" for text in problems]


def _read_header(file: Path) -> tuple[bytes, int, str]:
    """The header's JSON bytes, the size of the file, and what forbids to read it ("" when nothing does)."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return b"", 0, "not a file"
    with file.open("rb") as stream:
        start = stream.read(32)
        problem = _start_problem(start, status.st_size)
        if problem:
            return b"", status.st_size, problem
        stream.seek(8)
        return stream.read(int.from_bytes(start[:8], "little")), status.st_size, ""


def other_format(file: Path) -> str:
    """What a file is when it is clearly not safetensors ("" otherwise), from its first bytes, whatever its name."""
    try:
        with file.open("rb") as stream:
            return _sniff(stream.read(32))
    except OSError:
        return ""


def _sniff(start: bytes) -> str:
    if start[8:9] == b"{":
        return ""
    return next((what for magic, what in _OTHER_FORMATS if start.startswith(magic)), "")


def _start_problem(start: bytes, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if what := _sniff(start):
        return f"not a safetensors file but {what}"
    if size < 8:
        return f"truncated: {size} bytes, and a safetensors file begins with 8 bytes of header length"
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        return f"not a safetensors file, or corrupted: it claims a header of {length:,} bytes"
    if 8 + length > size:
        return f"truncated: the header takes {length:,} bytes, the file has {size - 8:,} after its length"
    if start[8:9] != b"{" or length < 2:
        return f"not a safetensors file, or corrupted: the header begins with {start[8:9]!r} and not with b'{{'"
    return ""


def _parse(header: bytes) -> tuple[dict[str, Any], str]:
    try:
        table = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return {}, f"corrupted header: not UTF-8 at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return {}, f"corrupted header: {error}"
    return (table, "") if isinstance(table, dict) else ({}, "corrupted header: not a table of tensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return table


def _read_entries(table: dict[str, Any], file: Path, base: int) -> tuple[dict[str, TensorEntry], list[str]]:
    entries: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, value in table.items():
        if name == "__metadata__":
            continue
        wrong = _entry_problem(value)
        if wrong:
            problems.append(f"tensor {name!r}: {wrong}")
            continue
        begin, end = value["data_offsets"]
        entries[name] = TensorEntry(name, value["dtype"], tuple(value["shape"]), file, base + begin, base + end)
    return entries, problems


def _entry_problem(value: object) -> str:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "needs exactly dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"unknown dtype {short_repr(dtype)}{did_you_mean(str(dtype)[:40], DTYPE_BYTES)}"
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        return f"shape {short_repr(shape)} is not a list of at most {_MAX_DIMS} sizes"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {short_repr(offsets)} are not [begin, end]"
    needed, given = math.prod(shape) * DTYPE_BYTES[dtype], offsets[1] - offsets[0]
    if needed != given:
        return f"{dtype} of shape {shape} takes {short_repr(needed)} bytes, data_offsets give {given:,}"
    return ""


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= _MAX_SIZE for v in value)


def _span_problems(entries: Iterable[TensorEntry], start: int, size: int) -> list[str]:
    """Gaps, overlaps, and tensors that end after the file."""
    problems: list[str] = []
    position, before = start, "the header"
    beyond: list[TensorEntry] = []
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.end > size:
            beyond.append(entry)
        if entry.begin < position:
            problems.append(f"tensor {entry.name!r} overlaps {before} by {position - entry.begin:,} bytes")
        elif entry.begin > position:
            problems.append(f"{entry.begin - position:,} bytes between {before} and tensor {entry.name!r} are unused")
        position, before = max(position, entry.end), f"tensor {entry.name!r}"
    if beyond:
        names = ", ".join(shorten((repr(e.name) for e in beyond), 3))
        problems.append(
            f"truncated: {size:,} bytes of {position:,}; the file ends before {len(beyond)} tensors ({names})"
        )
    elif position < size and not problems:
        problems.append(f"{size - position:,} bytes after the last tensor belong to nothing")
    return problems


def weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The safetensors files of a component: ``stem.safetensors``, or the shards ``stem.safetensors.index.json`` names,
    or a complete series ``stem-00001-of-0000N.safetensors`` without an index.

    Returns an empty tuple when there is none of these. Raises CheckpointError for a broken index or missing shards.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file():
        return _indexed(index)
    if single.is_file():
        return (single,)
    shards = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    return _complete_series(shards) if shards else ()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError that names the file and the place of the error."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: corrupted: not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: corrupted JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _indexed(index: Path) -> tuple[Path, ...]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
    names = sorted(set(table.values()))
    outside = [name for name in names if not name or "\0" in name or Path(name).name != name]
    if outside:
        raise CheckpointError(
            *(f"{index}: names the file {name!r} outside its own folder" for name in shorten(outside))
        )
    missing = [name for name in names if not _is_file(index.parent / name)]
    if missing:
        raise CheckpointError(*(f"{index}: names the shard {name!r}, which is missing" for name in shorten(missing)))
    return tuple(index.parent / name for name in names)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _complete_series(shards: list[Path]) -> tuple[Path, ...]:
    matches = [match for shard in shards if (match := _NUMBERED_SHARD.fullmatch(shard.name))]
    totals = {match[3] for match in matches}
    if len(totals) != 1:
        raise CheckpointError(f"{shards[0].parent}: shards of different series: {', '.join(s.name for s in shards)}")
    stem, total = matches[0][1], totals.pop()
    names = [f"{stem}-{i + 1:05}-of-{total}.safetensors" for i in range(int(total))]
    present = {shard.name for shard in shards}
    missing = [name for name in names if name not in present]
    if missing:
        raise CheckpointError(*(f"{shards[0].parent}: the shard {name!r} is missing" for name in shorten(missing)))
    return tuple(shards[0].parent / name for name in names)

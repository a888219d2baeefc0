"""Digests of checkpoints, for provenance: which weights made this video.

A component's digest is SHA-256 over its config (canonical JSON, without the writer's ``_`` keys) and, sorted by name,
each tensor's name, dtype, shape and SHA-256 of its bytes. It does not depend on sharding or on the order in the file.
Standard library only; hashing runs in threads, as hashlib lets go of the interpreter lock.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

from glimt.env import cpu_count
from glimt.errors import CheckpointError
from glimt.weights.header import TensorEntry, read_headers

_CHUNK_BYTES = 1 << 20
_Stamp = tuple[str, int, int]  # resolved path, size, mtime in ns: what a cached digest stays valid for
_Span = tuple[Path, int, int]
_cache: dict[tuple[_Stamp, int, int], str] = {}
_cache_lock = Lock()


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a config as canonical JSON; keys that begin with ``_`` are the writer's and do not count."""
    meaning = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tensors_digest(config: Mapping[str, Any], files: Iterable[Path]) -> str:
    """SHA-256, in hex, of a component: its config and its safetensors files (see the head of this module)."""
    entries = sorted(read_headers(files).values(), key=lambda entry: entry.name)
    hashes = _hash_spans([(entry.file, entry.begin, entry.end) for entry in entries])
    return _joined([config_digest(config), *(_line(e, digest) for e, digest in zip(entries, hashes, strict=True))])


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256, in hex, of files that hold no tensors we read ourselves (a tokenizer's): names and bytes."""
    ordered = sorted(files, key=lambda file: file.name)
    hashes = _hash_spans([(file, 0, _size(file)) for file in ordered])
    return _joined([f"{file.name}\0{digest}" for file, digest in zip(ordered, hashes, strict=True)])


def combined_digest(parts: Mapping[str, str]) -> str:
    """SHA-256, in hex, of named digests: a whole model's from its components'."""
    return _joined([f"{name}\0{parts[name]}" for name in sorted(parts)])


def _line(entry: TensorEntry, digest: str) -> str:
    return f"{entry.name}\0{entry.dtype}\0{','.join(map(str, entry.shape))}\0{digest}"


def _joined(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error


def _hash_spans(spans: list[_Span]) -> list[str]:
    """SHA-256 of each byte span, from the cache where its file is unchanged, else read in parallel."""
    stamps = {file: _stamp(file) for file, _, _ in spans}
    keys = [(stamps[file], begin, end) for file, begin, end in spans]
    with _cache_lock:
        wanted = [(key, span) for key, span in zip(keys, spans, strict=True) if key not in _cache]
    if wanted:
        hashes = _hash_in_parallel([span for _, span in wanted])
        with _cache_lock:
            _cache.update({key: digest for (key, _), digest in zip(wanted, hashes, strict=True)})
    with _cache_lock:
        return [_cache[key] for key in keys]


def _stamp(file: Path) -> _Stamp:
    try:
        status = file.stat()
        return os.path.realpath(file), status.st_size, status.st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error


def _hash_in_parallel(spans: list[_Span]) -> list[str]:
    """An exception, such as Ctrl-C while this waits, ends all of it within a chunk."""
    stop = Event()
    pool = ThreadPoolExecutor(max_workers=min(8, cpu_count()))
    try:
        return list(pool.map(partial(_hash_span, stop), spans))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _hash_span(stop: Event, span: _Span) -> str:
    # Read, not mapped: a mapping's pages would count as this process's memory, and a file cut short under a mapping
    # would end the process.
    file, position, end = span
    state, buffer = hashlib.sha256(), memoryview(bytearray(min(_CHUNK_BYTES, max(end - position, 1))))
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(position)
            while position < end and not stop.is_set():
                count = stream.readinto(buffer[: min(len(buffer), end - position)])
                if not count:
                    raise CheckpointError(f"{file}: became shorter while it was read")
                state.update(buffer[:count])
                position += count
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    return state.hexdigest()

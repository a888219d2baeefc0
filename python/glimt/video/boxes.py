"""The top-level boxes of an mp4 file: just enough to know that a file is whole and starts playing at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Box(NamedTuple):
    """One box of ISO/IEC 14496-12, section 4.2: four-character kind, where it begins, its size with the header."""

    kind: str
    offset: int
    size: int


def top_level_boxes(path: str | os.PathLike[str]) -> list[Box]:
    """The boxes of the file in order; ValueError if they do not fill the file exactly (it is cut or no mp4)."""
    boxes = []
    file_bytes = Path(path).stat().st_size
    with Path(path).open("rb") as handle:
        offset = 0
        while offset < file_bytes:
            handle.seek(offset)
            header = handle.read(16)
            size = int.from_bytes(header[:4], "big")
            smallest = 8
            if size == 1:  # the size did not fit into 32 bits and follows in 64
                size, smallest = int.from_bytes(header[8:16], "big"), 16
            if size == 0:  # "to the end of the file"
                size = file_bytes - offset
            if size < smallest or offset + size > file_bytes:
                raise ValueError(f"{os.fspath(path)}: the box at byte {offset} of {file_bytes} is cut or damaged")
            boxes.append(Box(header[4:8].decode("latin-1"), offset, size))
            offset += size
    return boxes


def is_whole_and_fast(path: str | os.PathLike[str]) -> bool:
    """Whether the file has its index (moov) before its data (mdat), both once and complete."""
    try:
        kinds = [box.kind for box in top_level_boxes(path)]
    except (ValueError, OSError):
        return False
    if kinds.count("moov") != 1 or "mdat" not in kinds:
        return False
    return kinds.index("moov") < kinds.index("mdat")

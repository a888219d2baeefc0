"""What the CUDA convolutions cost on every chip: the committed table, and a file of each family compiled again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from compiler import find_cutlass, find_nvcc

from glimt_kernels import aot_cuda, resources
from glimt_kernels.aot_cuda import BUILDS, OP

MADE_FROM, TABLE = aot_cuda.read_table()
BUILD_OF = {(OP, build.case, arch): build for build in BUILDS for arch in build.archs}
# Compiled in every run; all: make aot-cuda
SAMPLE = [("ampere_96", 89), ("hopper_96", 90)]


def test_the_table_is_of_these_sources_and_of_all_files_and_chips() -> None:
    assert MADE_FROM["sources"] == aot_cuda.digest(), "a kernel has changed: make aot-cuda AOT_ARGS=--write"
    assert set(TABLE) == set(BUILD_OF)
    assert {path.stem for path in aot_cuda.FOLDER.glob("*.cu")} == {build.case for build in BUILDS}


def test_no_row_spills_or_exceeds_its_chip_or_lacks_an_instruction() -> None:
    assert {key: found for key, row in TABLE.items() if (found := resources.faults(BUILD_OF[key], row))} == {}


def test_on_hopper_every_pair_of_frames_is_one_chain_of_products() -> None:
    """Sums over 32 channels are 2 wgmma for each of 3 taps and each frame; the loop is there twice (hopper.h)."""
    for case, frames in (("hopper_96", 4), ("hopper_192", 2)):
        row = TABLE[(OP, case, 90)]
        assert row.mma in (2 * 2 * 3 * frames, 2 * 2 * 3 * frames + 1)  # and one that waits
        assert row.tma == frames + 2 + 1  # each input frame once, and the weights


@pytest.mark.parametrize(("case", "arch"), SAMPLE)
def test_compiled_again_it_is_no_worse(case: str, arch: int) -> None:
    find_nvcc()
    find_cutlass()
    build = BUILD_OF[(OP, case, arch)]
    row = aot_cuda.read_row(build, arch)
    assert resources.faults(build, row) == []
    if aot_cuda.versions().items() <= MADE_FROM.items():  # another compiler allots registers otherwise
        assert resources.worse(row, TABLE[row.key]) == []


def test_a_changed_source_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = aot_cuda.digest()
    changed = tmp_path / "epilogue.h"
    changed.write_text((aot_cuda.FOLDER / "epilogue.h").read_text() + "// more")
    others = [path for path in aot_cuda.sources() if path.name != "epilogue.h"]
    monkeypatch.setattr(aot_cuda, "sources", lambda: [*others, changed])
    assert aot_cuda.digest() != before


def test_a_table_written_is_the_table_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_cuda, "versions", lambda: {"nvcc": "1", "cutlass": "2"})
    aot_cuda.write_table(TABLE, tmp_path / "table.jsonl")
    head, rows = aot_cuda.read_table(tmp_path / "table.jsonl")
    assert (head, rows) == ({"sources": aot_cuda.digest(), "nvcc": "1", "cutlass": "2"}, TABLE)
    assert aot_cuda.read_table(tmp_path / "none.jsonl") == ({}, {})
    assert json.loads((tmp_path / "table.jsonl").read_text().splitlines()[0])["nvcc"] == "1"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"local_bytes": 4}, "spills"), ({"shared_bytes": 240 << 10}, "shared memory"), ({"missing": "HGMMA"}, "HGMMA")],
)
def test_what_is_wrong_with_a_row_is_said(change: dict[str, object], why: str) -> None:
    key = (OP, "hopper_96", 90)
    row = dataclasses.replace(TABLE[key], **change)  # type: ignore[arg-type]
    assert [why in text for text in resources.faults(BUILD_OF[key], row)] == [True]

"""Files that belong together appear together, or none of them does."""

from __future__ import annotations

from pathlib import Path

import pytest

from glimt.errors import OutputError
from glimt.video import files


def write(together: files.Together, target: Path, text: str = "new") -> None:
    with files.temporary_beside(target) as temporary:
        temporary.write_text(text)
        together.publish(temporary, target)


def test_all_appear_at_the_end_of_the_block_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with files.Together() as together:
        write(together, tmp_path / "a")
        write(together, tmp_path / "b")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


@pytest.mark.parametrize("error", [ValueError, OutputError])
def test_leaving_by_an_error_keeps_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), files.Together() as together:
        write(together, tmp_path / "a")
        write(together, tmp_path / "b")
        raise error("no")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_an_interruption_leaves_what_is_finished(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.Together() as together:
        write(together, tmp_path / "a")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


def test_one_that_cannot_appear_takes_the_others_with_it(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("old")
    with pytest.raises(OutputError, match=r"cannot write .*/b: "), files.Together() as together:
        for name in "abc":
            write(together, tmp_path / name)
        (tmp_path / "b").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    assert (tmp_path / "c").read_text() == "old"


def test_one_that_is_not_there_is_an_error_that_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*/a: "), files.Together() as together:
        together.publish(tmp_path / "nothing", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []

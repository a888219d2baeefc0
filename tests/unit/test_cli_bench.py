"""``glimt bench kernels``: its options reach the benchmark, its mistakes are said at once, its rows come as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glimt.cli import main
from glimt.cli.parser import UsageError, parse

TINY = ["bench", "kernels", "--device", "cpu", "--op", "ada_norm", "--providers", "eager,reference", "--repeats", "2"]


def test_one_json_object_holds_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--json", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert [row["provider"] for row in result["rows"]] == ["eager", "reference"]
    assert result["rates"]["copy_gbps"] > 0 and result["machine"]["torch"]
    assert "### ada_norm, tiny" in printed.err, "tables are shown as they are made"


def test_mistakes_are_said_at_once_in_the_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--shapes", "tinny", "--op", "adanorm", "--provider-file", "none.py"]) == 2
    said = capsys.readouterr().err
    assert "--op: no 'adanorm'; did you mean 'ada_norm'?" in said
    assert "--shapes: no 'tinny'; did you mean 'tiny'?" in said and "--provider-file: no file none.py" in said


def test_what_is_timed_must_be_said() -> None:
    with pytest.raises(UsageError, match="what is missing: say what is to be timed"):
        parse(["bench"])
    with pytest.raises(UsageError, match="kernel"):
        parse(["bench", "kernls"])
    with pytest.raises(UsageError, match="--op: 'a,,b' has a comma with no name beside it"):
        parse(["bench", "kernels", "--op", "a,,b"])

"""``glimt bench kernels``: its options reach the benchmark, its mistakes are said at once, its rows come as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glimt.cli import main
from glimt.cli.parser import UsageError, build, parse
from glimt_kernels.bench import __main__ as bench

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


def test_an_option_given_again_adds_to_its_list() -> None:
    words = ["--op", "ada_norm", "--op", "attention,linear", "--providers", "eager", "--providers", "triton"]
    given = parse(["bench", "kernels", *words])
    assert given.op == ("ada_norm", "attention", "linear") and given.providers == ("eager", "triton")
    assert parse(["tune", "--op", "ada_norm", "--op", "linear"]).op == ("ada_norm", "linear")
    alone = bench.parser().parse_args(words)
    assert tuple(alone.op) == given.op and tuple(alone.providers) == given.providers
    with pytest.raises(UsageError, match="'a,,b' has a comma with no name beside it"):
        parse(["bench", "kernels", "--op", "a,,b", "--op", "linear"])


def test_with_and_without_the_engine_the_options_are_the_same() -> None:
    _, commands = build()
    ours = {*commands["bench"].option_names()} - {"--json"}
    assert ours == {name for action in bench.parser()._actions for name in action.option_strings if name[:2] == "--"}


def test_what_is_timed_must_be_said() -> None:
    with pytest.raises(UsageError, match="what is missing: say what is to be timed"):
        parse(["bench"])
    with pytest.raises(UsageError, match="kernel"):
        parse(["bench", "kernls"])
    with pytest.raises(UsageError, match="--op: 'a,,b' has a comma with no name beside it"):
        parse(["bench", "kernels", "--op", "a,,b"])


def test_tuning_at_a_models_own_shapes_and_what_info_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from glimt_kernels import tuned

    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    tuned.forget()
    try:
        words = ["tune", "--device", "cpu", "--op", "ada_norm,frames_to_uint8", "--repeats", "2", "--json"]
        assert main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert {trial["workload"] for trial in found["trials"]} == {"ada_norm", "frames_to_uint8"}
        assert {trial["shape"] for trial in found["trials"]} == {"glimt-world"}
        assert set(found["choices"].values()) <= {"native", "reference"}
        assert main(["info"]) == 0
        assert len(found["choices"]) > 4, "guided and not, and with an image or without"
        assert f"{len(found['choices'])} choices in {found['path']}" in capsys.readouterr().out
        assert main(["tune", "--model", "glimt-world", "--shapes", "tiny"]) == 2
        assert "--shapes: give either --model or --shapes" in capsys.readouterr().err
    finally:
        tuned.forget()

"""Errors say every problem, survive pickling, and near names are near."""

import pickle
import subprocess
import sys

import pytest

import glimt
from glimt import errors
from glimt.suggest import did_you_mean, nearest

PLAIN = [
    errors.GlimtError,
    errors.RequestError,
    errors.CheckpointError,
    errors.MemoryBudgetError,
    errors.NonFiniteError,
    errors.OutputError,
]


@pytest.mark.parametrize("kind", PLAIN)
def test_every_problem_is_printed(kind: type[errors.GlimtError]) -> None:
    error = kind("height: bad", "width: worse")
    assert error.problems == ("height: bad", "width: worse")
    assert all(problem in str(error) for problem in error.problems)
    assert str(kind("only this")) == "only this"
    assert kind(["a", "b"], "c").problems == ("a", "b", "c")


@pytest.mark.parametrize("kind", PLAIN)
def test_errors_survive_pickling(kind: type[errors.GlimtError]) -> None:
    again = pickle.loads(pickle.dumps(kind("a", "b")))
    assert type(again) is kind and again.problems == ("a", "b")


def test_an_error_without_a_problem_is_refused() -> None:
    with pytest.raises(TypeError):
        errors.GlimtError()
    with pytest.raises(TypeError):
        errors.GlimtError([])


def test_a_missing_package_says_how_to_install_it() -> None:
    error = errors.MissingDependencyError("av", "write mp4 files")
    assert "pip install av" in str(error) and "write mp4 files" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.install == "pip install av"


def test_request_errors_name_their_fields_once() -> None:
    assert errors.RequestError("a: x", "b: y", "a: z").fields == ("a", "b")


def test_near_names_ignore_case_and_separators() -> None:
    assert nearest("Uni-PC", ["euler", "unipc"]) == ["unipc"]
    assert did_you_mean("qqq", ["euler", "unipc"]) == ""
    assert did_you_mean("eular", ["euler", "unipc"]) == "; did you mean 'euler'?"


def test_an_unknown_public_name_says_what_is_near() -> None:
    with pytest.raises(AttributeError, match="GenerateRequest"):
        glimt.GenerateRequst  # noqa: B018


def test_importing_glimt_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'diffusers', 'av', 'PIL', 'rich', 'safetensors'}"
    code = f"import sys, glimt, glimt.request, glimt.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

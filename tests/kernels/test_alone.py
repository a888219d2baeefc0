"""The kernels installed without the engine: built from ``kernels/``, imported and measured where there is no glimt."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[2]
NO_ENGINE = """
import importlib.util, pathlib, sys
assert importlib.util.find_spec("glimt") is None, "the engine is here"
import glimt_kernels
from glimt_kernels import native
assert pathlib.Path(glimt_kernels.__file__).is_relative_to(sys.argv[1]), glimt_kernels.__file__
assert native.ABSENT is None, native.ABSENT
assert not any(name.partition(".")[0] in ("glimt", "glimt_world") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(the folder that they are installed in, the environment in which nothing else of glimt is found)."""
    target = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-build-isolation"]
    command += ["--no-deps", "--no-index", "--target", str(target), str(ROOT / "kernels")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLIMT_CUDA": "OFF"})
    assert done.returncode == 0, done.stdout + done.stderr
    # -S leaves out the .pth files by which an editable glimt is found; PyTorch is then found by its folder.
    places = [str(target), sysconfig.get_path("purelib"), *(place for place in sys.path if "site-packages" in place)]
    return target, {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def python(alone: tuple[Path, dict[str, str]], *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-s", *words], env=alone[1], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_they_are_built_and_run_without_the_engine(alone: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    done = python(alone, "-c", NO_ENGINE, str(alone[0]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["--op", "ada_norm", "--shapes", "tiny", "--providers", "eager,native", "--repeats", "2", "--device", "cpu"]
    done = python(alone, "-m", "glimt_kernels.bench", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "### ada_norm, tiny" in done.stdout and "| native |" in done.stdout
    assert "- glimt-kernels: 0.1.0" in done.stdout
    done = python(alone, "-m", "glimt_kernels.bench", "--op", "adanorm", cwd=tmp_path)
    assert done.returncode == 2 and "error: op: no 'adanorm'; did you mean 'ada_norm'?" in done.stderr


def test_both_packages_ask_for_the_same() -> None:
    whole, alone = (tomllib.loads((ROOT / path / "pyproject.toml").read_text()) for path in (".", "kernels"))
    assert alone["project"]["version"] == whole["project"]["version"]
    assert alone["project"]["requires-python"] == whole["project"]["requires-python"]
    assert set(alone["project"]["dependencies"]) <= set(whole["project"]["dependencies"])
    for extra, needs in alone["project"]["optional-dependencies"].items():
        assert needs == whole["project"]["optional-dependencies"][extra]
    same = ("wheel.exclude", "wheel.py-api", "cmake.build-type", "cmake.version", "ninja.version")
    build = [one["tool"]["scikit-build"] for one in (whole, alone)]
    for name in same:
        first, _, second = name.partition(".")
        assert build[0][first][second] == build[1][first][second], name
    assert alone["build-system"] == whole["build-system"]

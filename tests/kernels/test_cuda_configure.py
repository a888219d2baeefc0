"""Whether a build takes the CUDA kernels along is what GLIMT_CUDA says. Configured only, nothing is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiler import find_cutlass, find_nvcc

ROOT = Path(__file__).parents[2]
PLACES = ("CUDACXX", "CUDA_PATH", "CUDA_HOME", "CUDAToolkit_ROOT")  # where CMake looks for an nvcc beside PATH


def configure(build: Path, *options: str, **environment: str) -> tuple[int, str]:
    """CMake on this project; gives its exit code and all it said, in one line."""
    command = [sys.executable, "-m", "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Unix Makefiles"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options]
    kept = {name: value for name, value in os.environ.items() if name != "GLIMT_CUDA"}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def compiles_cuda(build: Path) -> bool:
    commands = (build / "compile_commands.json").read_text()
    assert (".cu" in commands) == ("GLIMT_WITH_CUDA" in commands)  # the kernels and what binds them
    return ".cu" in commands


@pytest.fixture
def without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvcc on PATH, where all else stays, and no wheel's: an empty package hides the one that is there."""
    folders = []
    for number, folder in enumerate(map(Path, os.environ["PATH"].split(os.pathsep))):
        folders.append(folder)
        if (folder / "nvcc").exists():
            folders[-1] = tmp_path / "path" / str(number)
            folders[-1].mkdir(parents=True)
            for tool in folder.iterdir():
                if tool.name != "nvcc":
                    (folders[-1] / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "site" / "nvidia").mkdir(parents=True)
    (tmp_path / "site" / "nvidia" / "__init__.py").touch()
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *([before] if before else [])]))


def test_off_takes_none_and_an_option_wins_over_the_environment(tmp_path: Path) -> None:
    code, said = configure(tmp_path / "a", GLIMT_CUDA="OFF")
    assert code == 0, said
    assert "CUDA kernels off (GLIMT_CUDA=OFF)" in said
    assert not compiles_cuda(tmp_path / "a")
    code, said = configure(tmp_path / "b", "-DGLIMT_CUDA=OFF", GLIMT_CUDA="ON")
    assert code == 0, said
    assert not compiles_cuda(tmp_path / "b")


@pytest.mark.parametrize("where", ["environment", "option"])
def test_an_unknown_word_is_an_error_that_names_the_three(tmp_path: Path, where: str) -> None:
    code, said = (
        configure(tmp_path, GLIMT_CUDA="of") if where == "environment" else configure(tmp_path, "-DGLIMT_CUDA=of")
    )
    assert code != 0
    assert "GLIMT_CUDA is 'of'; it must be AUTO, ON or OFF" in said


def test_on_takes_them(tmp_path: Path) -> None:
    find_nvcc()
    code, said = configure(tmp_path, GLIMT_CUDA="ON")
    assert code == 0, said
    assert "CUDA kernels for sm 80 86 89" in said
    assert compiles_cuda(tmp_path)


@pytest.mark.usefixtures("without_nvcc")
def test_without_an_nvcc_on_says_how_to_get_one_and_auto_takes_none(tmp_path: Path) -> None:
    build = tmp_path / "build"
    code, said = configure(build, GLIMT_CUDA="ON")
    assert code != 0
    assert "no usable CUDA toolkit" in said and "pip install" in said
    code, said = configure(build)
    assert code == 0, said
    assert "CUDA kernels off (no nvcc found)" in said
    assert not compiles_cuda(build)


def test_the_wheels_nvcc_is_found_also_after_none_was(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    nvcc = find_nvcc()
    request.getfixturevalue("without_nvcc")
    build = tmp_path / "build"
    assert "no nvcc found" in configure(build)[1]
    wheel = tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc"
    wheel.parent.mkdir(parents=True)
    wheel.write_text(f'#!/bin/sh\nexec "{nvcc}" "$@"\n')
    wheel.chmod(0o755)
    code, said = configure(build)
    assert code == 0, said
    assert compiles_cuda(build)
    assert str(wheel) in (build / "compile_commands.json").read_text()


def test_convolutions_are_compiled_where_the_headers_of_cutlass_are(tmp_path: Path) -> None:
    find_nvcc()
    headers = find_cutlass()
    code, said = configure(tmp_path, GLIMT_CUDA="ON")
    assert code == 0, said
    assert f"CUDA convolutions with CUTLASS of {headers}" in said
    commands = (tmp_path / "compile_commands.json").read_text()
    assert "hopper_96.cu" in commands and "sm_90a" in commands and "GLIMT_WITH_CUTLASS" in commands


def test_without_those_headers_they_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_nvcc()
    (tmp_path / "site/cutlass_library").mkdir(parents=True)  # hides one that is there
    (tmp_path / "site/cutlass_library/__init__.py").touch()
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *([before] if before else [])]))
    code, said = configure(tmp_path / "build", GLIMT_CUDA="ON")
    assert code == 0, said
    assert "CUDA convolutions left out" in said and "pip install --no-deps nvidia-cutlass" in said
    commands = (tmp_path / "build/compile_commands.json").read_text()
    assert "frames_to_uint8.cu" in commands and "hopper_96.cu" not in commands and "GLIMT_WITH_CUTLASS" not in commands

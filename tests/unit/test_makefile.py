"""The Makefile installs when something has changed that the installation is made of, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ".venv/.stamp-install"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the Makefile looks at, with a Python that only notes what it is called for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "cmake", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$GLIMT_CUDA: $*" >> calls\n')
    python.chmod(0o755)
    return tmp_path


def make(project: Path, *words: str, **environment: str) -> list[str]:
    """Runs make; gives the calls of Python that it made."""
    (project / "calls").write_text("")
    kept = {name: value for name, value in os.environ.items() if name not in ("GLIMT_CUDA", "MAKEFLAGS")}
    subprocess.run(["make", *words], cwd=project, env={**kept, **environment}, capture_output=True, check=True)
    return (project / "calls").read_text().splitlines()


def test_it_installs_once_and_again_when_glimt_cuda_is_another(project: Path) -> None:
    assert make(project, INSTALL)[-1].startswith("AUTO: ")
    assert make(project, INSTALL) == []
    cache = project / "build" / "wheel" / "CMakeCache.txt"  # knows the compilers of the build before
    cache.parent.mkdir(parents=True)
    cache.touch()
    (call,) = make(project, INSTALL, GLIMT_CUDA="OFF")
    assert call.startswith("OFF: -m pip") and call.endswith("-e .")
    assert not cache.exists()
    assert make(project, INSTALL, "GLIMT_CUDA=OFF") == []
    (call,) = make(project, INSTALL)
    assert call.startswith("AUTO: ")


def test_it_installs_again_when_native_sources_change(project: Path) -> None:
    make(project, INSTALL)
    later = (project / INSTALL).stat().st_mtime + 10
    os.utime(project / "csrc" / "bind.cpp", (later, later))
    assert len(make(project, INSTALL)) == 1

"""Nothing heavy until it is needed: `import glimt` and `glimt --help` are quick."""

from __future__ import annotations

import subprocess
import sys
import time

HEAVY = ("torch", "numpy", "transformers", "diffusers", "av", "PIL", "safetensors", "huggingface_hub")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_brings_nothing_heavy() -> None:
    assert run(f"import sys, glimt; print([m for m in {HEAVY!r} if m in sys.modules])").strip() == "[]"


def test_import_takes_under_a_tenth_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import glimt; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) < 0.1


def test_help_takes_under_three_tenths_of_a_second() -> None:
    def once() -> float:
        start = time.perf_counter()
        command = [sys.executable, "-c", "import sys; from glimt.cli import main; sys.exit(main())", "--help"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "generate" in done.stdout
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.3

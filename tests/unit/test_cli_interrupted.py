"""Ctrl-C while the real engine denoises: the process ends within a step, with 130, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from models import tiny

SIZE = ["--size", "64x32", "--frames", "9"]
STEPS = 1000  # minutes of work, so that none of it is done by itself


def test_ctrl_c_during_denoising_leaves_neither_files_nor_previews(tmp_path: Path) -> None:
    words = ["generate", "a red ball", "-o", "a.mp4", "--model", str(tiny.folder("t2v")), *SIZE, "--steps", str(STEPS)]
    previews = ["--preview-dir", "p", "--preview-every", "1"]  # the first of them says that denoising has begun
    with subprocess.Popen(
        [sys.executable, "-m", "glimt.cli", *words, *previews], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(tmp_path.glob("p/*.png")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.perf_counter() - start < 10
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []

"""Loading a checkpoint costs its component's memory and little more, whatever the file stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models import tiny

MEASURE = """
import resource, sys
from pathlib import Path
import torch
from glimt import Engine, EngineConfig
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, big = sys.argv[1:]
first = Engine.load(small, EngineConfig(device="cpu"))  # imports, and what a process allocates once
before = peak()
engine = Engine.load(big, EngineConfig(device="cpu"))
print(peak() - before)
"""


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_engine_takes_little_more_than_its_largest_component(tmp_path: Path, stored: torch.dtype) -> None:
    made = tiny.pipeline("t2v")
    made.transformer = tiny.transformer("t2v", ffn_dim=150_000)
    made.save_pretrained(tmp_path / "big")
    file = tmp_path / "big/transformer/diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as tensors:
        state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    component_bytes = 4 * sum(tensor.numel() for tensor in state.values())
    assert component_bytes > 100 << 20
    save_file({name: tensor.to(stored) for name, tensor in state.items()}, file)
    command = [sys.executable, "-c", MEASURE, str(tiny.folder("t2v")), str(tmp_path / "big")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 1.15 * component_bytes

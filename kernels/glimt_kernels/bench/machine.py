"""What a benchmark ran on: device, versions, clocks. What cannot be read says so."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "glimt",
    "glimt-kernels",
    "triton",
    "flash-attn",
    "sageattention",
    "flashinfer-python",
    "diffusers",
    "numpy",
)
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


def describe(device: torch.device) -> dict[str, Any]:
    """Device and versions; packages that are not installed are listed as such."""
    found: dict[str, Any] = {"device": device_name(device), "python": platform.python_version()}
    found["torch"] = str(torch.__version__)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["sm"] = f"sm_{properties.major}{properties.minor}, {properties.multi_processor_count} processors"
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found["driver"] = _query(device, "driver_version")
    else:
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
    return found | {name: version(name) or "not installed" for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """As the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """The installed version, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def clocks(device: torch.device) -> str:
    """Clocks, temperature and power of a GPU now, in words; or why they are not known."""
    if device.type != "cuda":
        return "not read on a CPU"
    values = _query(device, ",".join(_CLOCKS)).split(", ")
    return (
        ", ".join(map(" ".join, zip(_CLOCKS, values, strict=True)))
        if len(values) == len(_CLOCKS)
        else ", ".join(values)
    )


def _query(device: torch.device, fields: str) -> str:
    """What nvidia-smi says, of the device by its UUID: its order of devices need not be PyTorch's."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not known: there is no nvidia-smi here"
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader", f"--id={uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known: nvidia-smi failed ({type(error).__name__})"
    return done.stdout.strip()

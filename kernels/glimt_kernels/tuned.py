"""What ``glimt tune`` found fastest on this device, kept between processes; ``glimt_kernels.bench.tune`` finds it.

One file a device, in ``GLIMT_TUNED`` or the user's cache folder (``~/.cache/glimt/tuned``); ``GLIMT_TUNED=off`` reads
none. A choice is for an op, a dtype, the sizes of its tensors to the next power of two, and their heads and head_dim. A
file made on another device or by other versions is passed over, and :func:`states` says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VARIABLE = "GLIMT_TUNED"
FORMAT = 1
# What can change how fast a candidate is, besides these sources.
_PACKAGES = ("triton", "flash-attn", "flash-attn-4", "flashinfer-python", "sageattention")


@dataclass(frozen=True)
class Table:
    """What is known for one device.

    Attributes:
        path: of the file; None where none is read.
        choices: key of a call -> implementation.
        ignored: why the file is passed over; "" if it is not, or if there is none.
    """

    path: Path | None
    choices: Mapping[str, str] = field(default_factory=dict)
    ignored: str = ""

    def state(self) -> str:
        """In words."""
        if self.path is None:
            return f"not read, {VARIABLE} is off"
        if self.ignored:
            return f"{self.path} is ignored: {self.ignored}; run: glimt tune"
        return f"{len(self.choices)} choices in {self.path}" if self.choices else "none; made by: glimt tune"


def folder() -> Path | None:
    """Where the files are; None where they are switched off."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(asked or Path(home, "glimt", "tuned")).expanduser()


def device_name(device: torch.device) -> str:
    """What the choices of a device are kept under: one GPU is as good as another of its name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


def key(op: str, args: Sequence[Any]) -> str:
    """Of a call: the op, the first tensor's dtype, the size of each tensor to the next power of two (and of one of four
    axes, [B, N, heads, head_dim], the last two), and what is said in words, as an 8-bit format is.

    ``args``: as many as the schema has.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    parts = [op, _name(tensors[0].dtype)]
    for arg in args:
        if isinstance(arg, Tensor):
            size = str(max(arg.numel() - 1, 0).bit_length())
            parts.append(f"{size}/{arg.shape[2]}x{arg.shape[3]}" if arg.dim() == 4 else size)
        elif arg is None or isinstance(arg, (str, bool)):
            parts.append(str(arg))
        elif isinstance(arg, torch.dtype):
            parts.append(_name(arg))
    return " ".join(parts)


def lookup(op: str, args: Sequence[Any], on: torch.device | None = None) -> str:
    """The implementation found fastest for calls like this one; "" where nothing is known.

    ``on``: the device that is meant, where it is not that of the tensors.
    """
    device = on or next((arg.device for arg in args if isinstance(arg, Tensor)), None)
    if device is None or device.type not in ("cpu", "cuda"):
        return ""
    choices = table(device).choices
    return choices.get(key(op, args), "") if choices else ""


def agreed(op: str, device: torch.device, dtype: torch.dtype | None) -> str:
    """The implementation that all choices for ``op`` in ``dtype`` name; "" where they differ or there are none."""
    if device.type not in ("cpu", "cuda") or dtype is None:
        return ""
    choices = table(device).choices
    found = {impl for name, impl in choices.items() if name.split(" ")[:2] == [op, _name(dtype)]}
    return found.pop() if len(found) == 1 else ""


def states() -> dict[str, str]:
    """For each device here: how many choices there are, or why none is used."""
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return {str(device): table(device).state() for device in devices}


def table(device: torch.device) -> Table:
    """The choices for a device; read once a process."""
    found = _TABLES.get(device)
    if found is None:
        found = _TABLES[device] = read(device)
    return found


_TABLES: dict[torch.device, Table] = {}


def forget() -> None:
    """Read anew when next asked."""
    _TABLES.clear()


def path_of(device: torch.device) -> Path | None:
    home = folder()
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return None if home is None else home / f"{slug}.json"


def read(device: torch.device) -> Table:
    """From the file, which may be missing, damaged, foreign or stale; nothing of that is an error."""
    path = path_of(device)
    if path is None or not path.exists():
        return Table(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        choices = {str(name): str(impl) for name, impl in found["choices"].items()}
        made_by, made_on, version = dict(found["made_by"]), found["device"], found["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Table(path, ignored=f"it cannot be read ({type(error).__name__}: {error})")
    if version != FORMAT:
        return Table(path, ignored=f"its format is {version}, this version reads {FORMAT}")
    if made_on != device_name(device):
        return Table(path, ignored=f"it was made on {made_on}, this is {device_name(device)}")
    here = versions()
    stale = [
        f"{name} {made_by.get(name)}, here {here.get(name)}"
        for name in sorted({*made_by, *here})
        if made_by.get(name) != here.get(name)
    ]
    return Table(path, ignored=f"it was made with {'; '.join(stale)}") if stale else Table(path, choices)


def write(device: torch.device, choices: Mapping[str, str]) -> Path:
    """Add ``choices`` to those of the device that are still good, and have this process use them.

    Raises:
        ValueError: choices are switched off.
    """
    path = path_of(device)
    if path is None:
        raise ValueError(f"{VARIABLE} is off: unset it, or set it to a folder, to keep what is found")
    kept = {**read(device).choices, **choices}
    made = {"format": FORMAT, "device": device_name(device), "made_by": versions(), "choices": kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(made, file, indent=1)
    Path(file.name).replace(path)  # at once: a reader sees the old file or the new one
    forget()
    return path


@cache
def versions() -> dict[str, str]:
    """Of everything that decides how fast a candidate is; ``kernels`` stands for the sources of this package."""
    found = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda), "kernels": _digest()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # noqa: PERF203
            found[name] = "not installed"
    return found


def _digest() -> str:
    total = hashlib.blake2b(digest_size=8)
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] != "bench":
            total.update(str(relative).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

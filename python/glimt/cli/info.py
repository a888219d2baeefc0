"""``glimt info``: what there is to run on, and which implementation of each operation would run."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glimt import env
from glimt.cli.outcome import Outcome
from glimt.report import surroundings


def run(_namespace: argparse.Namespace) -> Outcome:
    """Everything that can change what comes out or how fast."""
    info = {
        "versions": surroundings(),
        "devices": _devices(),
        "instruction_sets": _instruction_sets(),
        "implementations": _implementations(),
        "tuned": _tuned(),
    }
    return Outcome("\n".join(_lines(info)), info)


def _lines(info: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name:<16}{version}" for name, version in info["versions"].items())
    yield ""
    yield from (f"{device['device']:<16}{device['name']}, {_details(device)}" for device in info["devices"])
    yield "\ninstruction sets of the native CPU kernels"
    yield from (f"  {row['isa']:<32}{_state(row)}" for row in info["instruction_sets"])
    yield "\ntuned choices, which go before the order below"
    yield from (f"  {device:<14}{state}" for device, state in info["tuned"].items())
    for case, rows in info["implementations"].items():
        yield f"\noperations, {case}"
        width = max(len(_op(row)) for row in rows) + 2
        yield from (f"  {_op(row):<{width}}{row['impl']:<12}{_state(row)}" for row in rows)


def _op(row: dict[str, Any]) -> str:
    return f"{row['op']}, {row['form']}" if row["form"] else str(row["op"])


def _state(row: dict[str, Any]) -> str:
    return "runs" if row["chosen"] else "; ".join(row["reasons"]) or "could run"


def _details(device: dict[str, Any]) -> str:
    memory = device["memory_bytes"]
    parts = [f"{memory / 2**30:.1f} GiB" if memory else "memory unknown"]
    if "cores" in device:
        parts.insert(0, f"{device['cores']} cores")
    if "capability" in device:
        parts.append(f"sm_{device['capability'].replace('.', '')}")
    return ", ".join(parts)


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [
        {"device": "cpu", "name": _cpu_name(), "cores": env.cpu_count(), "memory_bytes": env.total_memory_bytes()}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": capability,
            }
        )
    return found


def _cpu_name() -> str:
    """As Linux names it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _instruction_sets() -> list[dict[str, Any]]:
    from glimt_kernels import native

    return native.instruction_sets()


def _tuned() -> dict[str, str]:
    """For each device, what ``glimt tune`` left for it, or why that is ignored."""
    from glimt_kernels import tuned

    return tuned.states()


def _implementations() -> dict[str, list[dict[str, Any]]]:
    """The inventory of operations for each device that is here, in the dtype that it is used with."""
    import torch

    from glimt_kernels import dispatch, inventory
    from glimt_kernels.forms import FORMS
    from glimt_kernels.linear import onednn

    cases = {("cpu", "cpu float32"): dispatch.CPU_FLOAT32}
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        arch = dispatch.arch_of(torch.device(device))
        cases[device, f"{device} sm_{arch} bfloat16"] = dispatch.Case("cuda", torch.bfloat16, arch=arch)
    return {
        name: [*onednn.inventory(case), *inventory(case, FORMS, torch.device(device))]
        for (device, name), case in cases.items()
    }

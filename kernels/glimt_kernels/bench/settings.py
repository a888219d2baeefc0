"""What a run of the benchmark is asked for, checked as a whole."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glimt_kernels.bench.ops import OPS
from glimt_kernels.bench.shapes import SHAPES

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class BenchError(ValueError):
    """A run that cannot be made; ``problems`` names all that is wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        ops: workloads by name (``glimt_kernels.bench.ops``); the name of an op stands for all that it has. Empty: all.
        shapes: names in ``SHAPES``. Empty: all real ones on a GPU, "tiny" on a CPU.
        providers: columns by name. Empty: all that run here.
        lossy: providers that are timed though they are less exact than the budget allows.
        dtype: "fp32", "fp16", "bf16", or None: bf16 on a GPU, fp32 on a CPU.
        device: "cpu", "cuda", "cuda:N", or None: a GPU if there is one.
        repeats: timed calls of each provider, at most.
        limit_s: seconds of timing in one workload after which no further round begins; three rounds there are.
        out: folder for rows.jsonl, report.md and the plots; a run goes on where an earlier one stopped.
        provider_file: a Python file with ``PROVIDERS``, see README.md.
        compile: whether torch.compile is a provider where none is named; it takes seconds for each workload.

    Raises:
        BenchError: naming everything that is wrong.
    """

    ops: Sequence[str] = ()
    shapes: Sequence[str] = ()
    providers: Sequence[str] = ()
    lossy: Sequence[str] = ()
    dtype: str | None = None
    device: str | None = None
    repeats: int = 20
    limit_s: float = 5.0
    out: Path | None = None
    provider_file: Path | None = None
    compile: bool = True

    def __post_init__(self) -> None:
        problems = [
            *_unknown("op", self.ops, [*OPS, *(name.partition("/")[0] for name in OPS)]),
            *_unknown("shapes", self.shapes, SHAPES),
            *_unknown("dtype", [self.dtype] if self.dtype is not None else [], DTYPES),
            *_device_problems(self.device),
        ]
        if self.repeats < 1:
            problems.append(f"repeats: must be 1 or more, found {self.repeats}")
        if not self.limit_s >= 0:
            problems.append(f"limit_s: must be 0 or more seconds, found {self.limit_s}")
        if self.provider_file is not None and not self.provider_file.is_file():
            problems.append(f"provider_file: no file {self.provider_file}")
        if problems:
            raise BenchError(*problems)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def dtype_name(self) -> str:
        return self.dtype or ("bf16" if self.torch_device.type == "cuda" else "fp32")

    @property
    def workloads(self) -> list[str]:
        """Names in ``OPS``, in that order."""
        return [name for name in OPS if not self.ops or {name, name.partition("/")[0]} & set(self.ops)]

    @property
    def shape_names(self) -> list[str]:
        if self.shapes:
            return list(self.shapes)
        return [name for name in SHAPES if name != "tiny"] if self.torch_device.type == "cuda" else ["tiny"]


def _unknown(field: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    names, known = list(names), list(dict.fromkeys(known))
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            problems.append(f"{field}: no {name!r}; {hint}")
    return problems


def _device_problems(device: str | None) -> list[str]:
    if device is None:
        return []
    try:
        asked = torch.device(device)
    except RuntimeError:
        return [f"device: {device!r} is none of cpu, cuda, cuda:<index>"]
    if asked.type not in ("cpu", "cuda"):
        return [f"device: {device!r} is none of cpu, cuda, cuda:<index>"]
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        return [f"device: {device} was asked for; PyTorch finds {torch.cuda.device_count()} CUDA devices here"]
    return []

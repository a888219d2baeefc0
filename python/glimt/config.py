"""How an engine runs, fixed when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from glimt.errors import RequestError
from glimt.suggest import checked_keywords, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")
PRECISIONS = ("full", "int8", "fp8")
BACKENDS = ("eager", "inductor", "tensorrt", "tensorrt-rtx")
QUALITIES = ("exact", "equivalent", "lossy")


@checked_keywords("setting")
@dataclass(frozen=True)
class EngineConfig:
    """Settings of an engine; frozen, and checked as a whole when made.

    Attributes:
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:<index>``.
        dtype: arithmetic of the networks. ``auto`` is float32 on a CPU and bfloat16 on CUDA; latents stay float32.
        precision: ``full``, or ``int8`` or ``fp8``: the transformers' products and self-attention on eight-bit numbers
            with scales, their weights in half the memory. Class lossy, so it wants ``quality="lossy"``.
        backend: how the transformer is run: ``eager``; ``inductor``, PyTorch's compiler on its blocks, when they are
            first called; or what was built of it (:meth:`glimt.Engine.compile`) by ``tensorrt`` or ``tensorrt-rtx``,
            which find it by its key or say in what it differs.
        engines: folder of what was compiled; ``None`` is the user's cache (``~/.cache/glimt/engines``).
        quality: the loosest class of optimization allowed: ``exact`` (the bits of PyTorch's own operations in their
            plain form: nothing fused, folded or reordered), ``equivalent`` (within the numerics budget) or ``lossy``
            (may change the picture: allows ``precision``, and requests with ``decoder="tiny"``, and runs all else as
            ``equivalent``).
        memory_budget_bytes: the most memory a request may be planned to need; ``None`` is what the machine has free.
        strict: a fallback to another implementation is an error, not a note in the report.
        offline: ``True`` never touches the network, ``None`` follows ``HF_HUB_OFFLINE``.
        allow_pickle: accept checkpoints stored as pickles, which can run code of whoever wrote them.
        tiny_decoder: file of a tiny decoder of the TAEHV form, such as the published ``taew2_1.safetensors``, for
            previews and ``decoder="tiny"``; ``None`` is the checkpoint's own, if it has one.

    Raises:
        RequestError: naming every field that is wrong.
    """

    device: str = "auto"
    dtype: str = "auto"
    precision: str = "full"
    backend: str = "eager"
    quality: str = "equivalent"
    memory_budget_bytes: int | None = None
    strict: bool = False
    offline: bool | None = None
    allow_pickle: bool = False
    tiny_decoder: str | None = None
    engines: str | None = None

    def __post_init__(self) -> None:
        problems = [problem for problem in self._problems() if problem]
        if problems:
            raise RequestError(*problems)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> EngineConfig:
        """A configuration from names and values; an unknown name is an error with the names near it."""
        return cls(**{str(name): value for name, value in values.items()})

    def override(self, **changes: Any) -> EngineConfig:
        """This configuration with some settings changed; checked like a new one."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _problems(self) -> list[str]:
        return [
            _check_device(self.device),
            _check_choice("dtype", self.dtype, DTYPES),
            _check_choice("precision", self.precision, PRECISIONS) or _check_lossy(self.precision, self.quality),
            _check_choice("backend", self.backend, BACKENDS),
            _check_choice("quality", self.quality, QUALITIES),
            _check_budget(self.memory_budget_bytes),
            _check_flag("strict", self.strict),
            "" if self.offline is None else _check_flag("offline", self.offline),
            _check_flag("allow_pickle", self.allow_pickle),
            _check_path("tiny_decoder", self.tiny_decoder),
            _check_path("engines", self.engines),
            _check_together(self.backend, self.precision, self.quality),
        ]


def _check_device(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return ""
    near = did_you_mean(value, ("auto", "cpu", "cuda")) if isinstance(value, str) else ""
    return f"device: {value!r} is not one of 'auto', 'cpu', 'cuda', 'cuda:<index>'{near}"


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return ""
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{field}: {value!r} is not one of {', '.join(map(repr, choices))}{near}"


def _check_lossy(precision: str, quality: str) -> str:
    if precision == "full" or quality == "lossy" or quality not in QUALITIES:
        return ""
    return (
        f"precision: {precision!r} changes the picture (class lossy), and quality is {quality!r}; "
        "use quality='lossy', or precision='full'"
    )


def _check_together(backend: str, precision: str, quality: str) -> str:
    if backend == "eager" or backend not in BACKENDS:
        return ""
    if quality == "exact":
        return (
            f"backend: {backend!r} fuses and reorders (class equivalent), and quality is 'exact'; use backend='eager'"
        )
    if precision != "full" and precision in PRECISIONS:
        return f"backend: {backend!r} has no precision {precision!r}; use backend='eager', or precision='full'"
    return ""


def _check_budget(value: object) -> str:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return ""
    return f"memory_budget_bytes: {value!r} is not a positive whole number of bytes (or None for what is free)"


def _check_path(field: str, value: object) -> str:
    return (
        ""
        if value is None or (isinstance(value, str) and value)
        else f"{field}: {value!r} is no path as text (or None)"
    )


def _check_flag(field: str, value: object) -> str:
    return "" if isinstance(value, bool) else f"{field}: {value!r} is not True or False"

"""What is to be compiled: for which sizes, in which precision, for which cards.

Standard library only. A spec is checked as a whole when it is made, and as a whole against a model (:meth:`check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from glimt.errors import RequestError
from glimt.shapes import PixelGrid, TokenGrid, nearest_sizes, round_frames
from glimt.suggest import checked_keywords, did_you_mean

# What writes plan files, and the cards it writes them for.
TARGETS = {
    "tensorrt": ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_121"),
    "tensorrt-rtx": ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
}
PRECISIONS = ("bf16", "fp16")
# Fused attention in float16 keeps its sum in float16, whose largest number this is (with 0 the exponents of all keys).
FP16_KEYS = 65504


class Bucket(NamedTuple):
    """One size of clip, in pixels and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


class Card(Protocol):
    """What of a model decides which buckets it has."""

    @property
    def scale_factor_temporal(self) -> int: ...

    @property
    def scale_factor_spatial(self) -> int: ...

    @property
    def z_dim(self) -> int: ...

    @property
    def patch(self) -> tuple[int, int, int]: ...

    @property
    def size_multiple(self) -> tuple[int, int]: ...


@checked_keywords("setting of a compilation")
@dataclass(frozen=True)
class CompileSpec:
    """What :meth:`glimt.Engine.compile` makes; frozen, and checked as a whole when made.

    Attributes:
        buckets: sizes (height, width, frames), one TRT engine for each and each target.
        targets: cards, as ``"sm_89"``.
        backend: ``"tensorrt-rtx"``, which builds for any of its cards on any machine, or ``"tensorrt"``, which builds
            for the card that is in the machine.
        precision: of products and attention, ``"bf16"`` or ``"fp16"``; what the model keeps in float32 stays so.
        guided: whether a call has a prompt and a negative prompt; ``None``: as the model does by default.

    Raises:
        RequestError: naming every setting that is wrong.
    """

    buckets: Sequence[Sequence[int]]
    targets: Sequence[str]
    backend: str = "tensorrt-rtx"
    precision: str = "bf16"
    guided: bool | None = None

    def __post_init__(self) -> None:
        problems = [
            *_backend_problems(self.backend),
            *_bucket_problems(self.buckets),
            *_target_problems(self.targets, TARGETS.get(str(self.backend), ())),
            *_precision_problems(self.precision),
            *_guided_problems(self.guided),
        ]
        if problems:
            raise RequestError(*problems)
        object.__setattr__(self, "buckets", tuple(dict.fromkeys(Bucket(*bucket) for bucket in self.buckets)))
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """The buckets, each once."""
        return tuple(Bucket(*bucket) for bucket in self.buckets)

    def check(self, card: Card) -> None:
        """Raise RequestError with everything in which a model cannot do this, and the nearest that it can."""
        problems = [f"buckets: {bucket}: {text}" for bucket in self.sizes for text in _misfits(bucket, card)]
        if self.precision == "fp16" and not problems:
            keys = {bucket: tokens(bucket, card).count for bucket in self.sizes}
            problems = [
                f"precision: fp16 attention overflows past {FP16_KEYS} keys and {bucket} has {count}; use 'bf16'"
                for bucket, count in keys.items()
                if count > FP16_KEYS
            ]
        if problems:
            raise RequestError(*problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def tokens(bucket: Bucket, card: Card) -> TokenGrid:
    """The token grid of a clip of this size, which must be one of the model's."""
    clip = PixelGrid(bucket.frames, bucket.height, bucket.width)
    return clip.latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial).tokens(card.patch)


def _backend_problems(backend: object) -> Iterator[str]:
    if isinstance(backend, str) and backend in TARGETS:
        return
    if backend in ("eager", "inductor"):
        yield f"backend: {backend!r} writes no plan files; load the engine with EngineConfig(backend={backend!r})"
        return
    yield f"backend: {backend!r} is not one of {_listed(TARGETS)}{did_you_mean(str(backend), TARGETS)}"


def _bucket_problems(buckets: object) -> Iterator[str]:
    if isinstance(buckets, str) or not isinstance(buckets, Iterable) or not list(buckets):
        yield f"buckets: {buckets!r} is not a list of (height, width, frames), as [(480, 832, 81)]"
        return
    for bucket in buckets:
        if isinstance(bucket, str) or not isinstance(bucket, Sequence) or len(bucket) != 3:
            yield f"buckets: {bucket!r} is not (height, width, frames), as (480, 832, 81)"
        elif not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in bucket):
            yield f"buckets: {tuple(bucket)} are not three positive whole numbers (height, width, frames)"


def _target_problems(targets: object, known: Sequence[str]) -> Iterator[str]:
    if isinstance(targets, str) or not isinstance(targets, Iterable) or not list(targets):
        yield f"targets: {targets!r} is not a list of cards, as ['sm_89', 'sm_120']"
        return
    for target in targets if known else ():
        if target not in known:
            yield f"targets: {target!r} is not one of {_listed(known)}{_nearest_target(target, known)}"


def _nearest_target(target: object, known: Sequence[str]) -> str:
    """The card whose number is nearest: what may have been meant, not what runs the same plan files."""
    number = re.search(r"\d+", str(target))
    if number is None:
        return ""
    digits = number[0] if len(number[0]) > 1 else f"{number[0]}0"
    near = min(known, key=lambda name: abs(int(name.removeprefix("sm_")) - int(digits)))
    return f"; nearest: {near!r}"


def _precision_problems(precision: object) -> Iterator[str]:
    if precision == "fp32":
        yield "precision: 'fp32' has no fused attention in TensorRT; nearest: 'bf16'"
    elif precision not in PRECISIONS:
        near = did_you_mean(str(precision), PRECISIONS)
        yield f"precision: {precision!r} is not one of {_listed(PRECISIONS)}{near}"


def _guided_problems(guided: object) -> Iterator[str]:
    if guided is not None and not isinstance(guided, bool):
        yield f"guided: {guided!r} is not True, False or None"


def _misfits(bucket: Bucket, card: Card) -> Iterator[str]:
    legal = round_frames(bucket.frames, card.scale_factor_temporal)
    if legal != (bucket.frames,):
        yield f"{bucket.frames} frames are not {card.scale_factor_temporal} n + 1; nearest: {_either(legal)}"
    for name, multiple in zip(("height", "width"), card.size_multiple, strict=True):
        size = getattr(bucket, name)
        legal = nearest_sizes(size, multiple)
        if legal != (size,):
            yield f"{name} {size} is not a multiple of {multiple}; nearest: {_either(legal)}"


def _either(values: Iterable[int]) -> str:
    return " or ".join(map(str, values))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))

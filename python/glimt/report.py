"""What came out of a request, how long each stage took, and what made it.

``VideoResult.save`` is the one place where a lower floor calls a higher one: the three verbs end in
``result.save(path)``, and writing a file is the video package's business (floor 5). It is imported when called, so that
nothing here depends on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from glimt.env import versions
from glimt.errors import OutputError
from glimt.request import ResolvedRequest
from glimt.weights.origin import Origin

if TYPE_CHECKING:
    from torch import Tensor

    from glimt.plan.value import OpChoice

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class StageReport:
    """One stage as it went, beside what the plan said.

    Attributes:
        name: text, image, preview, denoise or decode; summed over variants.
        ms: wall time spent in the stage itself, not in whoever consumed its events.
        planned_s: seconds the plan estimated.
        peak_bytes: the most memory in use during the stage: resident memory of the process on a CPU, allocated device
            memory on CUDA. The true peak of a stage that went higher than the process ever had; of any other, which no
            counter tells, the most at the end of one of its steps.
        planned_bytes: what the plan estimated the stage to need, beside what the process held anyway.
    """

    name: str
    ms: float
    planned_s: float
    peak_bytes: int
    planned_bytes: int

    @property
    def ratio(self) -> float:
        """Measured over planned time."""
        return self.ms / 1000 / self.planned_s if self.planned_s > 0 else float("inf")


@dataclass(frozen=True)
class RunReport:
    """How a request went.

    Attributes:
        stages: in order.
        total_ms: from the request to its last frame, consumers of a stream included.
        peak_rss_bytes: the most resident memory the process has had, not only in this request.
        implementations: which implementation of each op ran, as each call chose it; previews, which are decoded when a
            consumer asks for them, apart.
        decode: what made the frames, and in what chunks and tiles, in words.
        fallbacks: implementations that were passed over, each with its reasons.
        notes: what the caller should know, such as how a prompt was cut.
        ops: of each op that ran, on which device, chip and dtypes, and why its other implementations did not.
        decoder: what made the frames, ``vae`` or ``tiny`` (class lossy).
        previews: what made previews, and where that came from; "" where none were asked for.
    """

    stages: tuple[StageReport, ...]
    total_ms: float
    peak_rss_bytes: int
    implementations: dict[str, str]
    decode: str = ""
    fallbacks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ops: tuple[OpChoice, ...] = ()
    decoder: str = "vae"
    previews: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            f"{stage.name:<8} {stage.ms / 1000:8.2f} s  (planned {stage.planned_s:.2f} s, x{stage.ratio:.2f})"
            f"  {stage.peak_bytes / _MEGABYTE:8.0f} MB"
            for stage in self.stages
        ]
        rows.append(
            f"{'whole':<8} {self.total_ms / 1000:8.2f} s  peak {self.peak_rss_bytes / _MEGABYTE:.0f} MB resident"
        )
        rows += [f"decode    {self.decode}"] if self.decode else []
        rows += [f"previews  {self.previews}"] if self.previews else []
        rows += [f"fallback  {line}" for line in self.fallbacks] + [f"note      {line}" for line in self.notes]
        return "\n".join(rows)


def surroundings() -> dict[str, str]:
    """Versions of Python and packages, and the CPU's instruction set: what can change a result besides the settings."""
    from glimt_kernels import instruction_set  # brings PyTorch

    return {**versions(), "instruction set": instruction_set()}


@dataclass(frozen=True)
class Provenance:
    """What made a video: enough to make its frames again, and to see whether they came out the same.

    Attributes:
        model, model_digest: name, and SHA-256 over all components. ``components``: SHA-256 of each.
        origin: what the model was called when it was opened, and its base.
        request: the whole request, nothing left to defaults.
        config: the engine's settings.
        device, dtype: where and in which arithmetic it ran.
        versions: see :func:`surroundings`.
        implementations: which implementation of each op ran.
        notes: those of the plan: how a prompt was cut, what had no effect.
        frames_sha256: of each variant's uint8 frames [F, H, W, 3] in C order, before encoding; empty before they exist.
    """

    model: str
    model_digest: str
    origin: Origin
    request: ResolvedRequest
    config: dict[str, Any]
    device: str
    dtype: str
    implementations: dict[str, str]
    notes: tuple[str, ...] = ()
    frames_sha256: tuple[str, ...] = ()
    components: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=surroundings)

    def record(self, variant: int = 0) -> dict[str, Any]:
        """The settings record that goes into a video file (``glimt.video.record``), without its ``frames``.

        Its request is that of the one variant alone, so that every file can be made again by itself.
        """
        return {
            "model": {
                "name": self.model,
                **self.origin.to_dict(),
                "digest": self.model_digest,
                "components": self.components,
            },
            "request": self.request.variant(variant).to_dict(),
            "config": {**self.config, "device": self.device, "dtype": self.dtype},
            "versions": self.versions,
            "implementations": self.implementations,
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.record(), "request": self.request.to_dict(), "frames_sha256": list(self.frames_sha256)}


@dataclass(frozen=True, eq=False)
class VideoResult:
    """Finished videos.

    Attributes:
        videos: one [F, H, W, 3] uint8 RGB array for each variant.
        fps: frames per second.
        report, provenance: how it went, what made it.
        latents: the finished latents [1, C, f, h, w] of each variant, float32, normalized; only when asked for.
    """

    videos: tuple[npt.NDArray[np.uint8], ...] = field(repr=False)
    fps: float
    report: RunReport = field(repr=False)
    provenance: Provenance = field(repr=False)
    latents: tuple[Tensor, ...] | None = field(default=None, repr=False)

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """The first variant's frames, [F, H, W, 3] uint8 RGB."""
        return self.videos[0]

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write every variant as mp4, the settings record inside; returns the files written.

        One variant goes to ``path``; of several, ``ball.mp4`` becomes ``ball-7.mp4``, ``ball-8.mp4`` with their seeds.

        Raises:
            OutputError: not writable, disk full, or a name that is not mp4.
            MissingDependencyError: PyAV is not installed.
        """
        from glimt.video.mp4 import save_video  # floor 5: see the head of this module

        paths = self._paths(Path(path))
        for index, (target, frames) in enumerate(zip(paths, self.videos, strict=True)):
            save_video(target, frames, self.fps, record=self.provenance.record(index))
        return paths

    def _paths(self, path: Path) -> tuple[Path, ...]:
        if not path.name:
            raise OutputError(f"cannot write {str(path)!r}: it names no file; write something like clip.mp4")
        if len(self.videos) == 1:
            return (path,)
        return tuple(path.with_stem(f"{path.stem}-{seed}") for seed in self.provenance.request.seeds)


def frames_sha256(frames: npt.NDArray[np.uint8]) -> str:
    """SHA-256, in hex, of uint8 frames [F, H, W, 3] in C order."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()

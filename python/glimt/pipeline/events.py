"""What a running request tells: stages beginning and ending, denoising steps, finished frames. All frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from glimt.report import RunReport

Frames: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StageEvent:
    """A stage begins or ends.

    Attributes:
        stage: ``text``, ``image``, ``preview``, ``denoise``, ``decode``, and last ``done``.
        status: ``begin`` or ``end``; ``done`` only ends.
        elapsed_ms: since the request began.
        variant: which of the request's videos; 0 for stages they share.
        note: on the first event, what the plan notes, such as how a prompt is cut; else "".
        report: on ``done`` only.
        implementations: where a stage ends, which implementation of each op the request has run by so far.
    """

    stage: str
    status: str
    elapsed_ms: float
    variant: int = 0
    note: str = ""
    report: RunReport | None = None
    implementations: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class StepState:
    """After one denoising step.

    Attributes:
        step: steps done, 1 to ``num_steps``.
        sigma, timestep: noise level this step started from, and what the network was fed.
        expert: 0, or 1 for the low-noise transformer of a model with two.
        elapsed_ms: since this variant's denoising began.
        eta_s: seconds that the steps left should take at the pace so far.
        x0: the step's estimate of the finished latents, [1, C, f, h, w] float32, normalized; do not write to it.
        variant: which of the request's videos.
        stage: always ``denoise``.
    """

    step: int
    num_steps: int
    sigma: float
    timestep: float
    expert: int
    elapsed_ms: float
    eta_s: float
    x0: Tensor = field(repr=False)
    variant: int = 0
    stage: str = "denoise"
    _preview: Callable[[Tensor], Frames] | None = field(default=None, repr=False, compare=False)

    def preview(self) -> Frames | None:
        """A small clip [f, h, w, 3] uint8 of ``x0``, a frame for each of its latent frames (the last of those it stands
        for); ``None`` unless the request's ``preview_every`` asks for one at this step.

        Computed when called, by what the plan's ``preview`` says: the tiny decoder or a linear map.
        """
        return None if self._preview is None else self._preview(self.x0)


@dataclass(frozen=True)
class FrameChunk:
    """Finished frames, in order.

    Attributes:
        index: number of the first of them in the clip, from 0.
        frames: [n, H, W, 3] uint8 RGB, the caller's to keep.
        fps: frames per second of the clip.
        variant: which of the request's videos.
    """

    index: int
    frames: Frames = field(repr=False)
    fps: float
    variant: int = 0


Event: TypeAlias = StageEvent | StepState | FrameChunk

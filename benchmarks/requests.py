"""What is asked of every provider. Standard library only: workers time their imports from nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import cycle, islice, product
from typing import Any

_COLOURS = ("red", "blue", "yellow", "green")
_SHAPES = ("ball", "cube", "cone")
_MOTIONS = ("rolls left", "moves right", "bounces up and down")


@dataclass(frozen=True)
class Request:
    """One text-to-video request, nothing left to defaults: the providers' differ."""

    prompt: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    negative_prompt: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def prompts(count: int) -> list[str]:
    """``count`` prompts of the little world; up to 36 of them are all different, so that no cache helps."""
    scenes = [f"a {c} {s} {m} over a grey floor" for m, s, c in product(_MOTIONS, _SHAPES, _COLOURS)]
    return list(islice(cycle(scenes), count))


def requests(
    count: int, *, height: int, width: int, num_frames: int, num_inference_steps: int, guidance_scale: float
) -> list[Request]:
    """``count`` requests of one size: each its own prompt and seed."""
    return [
        Request(prompt, height, width, num_frames, num_inference_steps, guidance_scale, seed)
        for seed, prompt in enumerate(prompts(count))
    ]

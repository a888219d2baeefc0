"""The columns of a benchmark. Heavy imports are inside ``load``, because they are part of what is timed.

A provider marks the stages text, denoise and decode on the stopwatch it is given; the caller times the whole.
"""

from __future__ import annotations

from typing import Any, Protocol

from benchmarks.requests import Request
from benchmarks.stopwatch import Stopwatch

# [F, H, W, 3] uint8.
Frames = Any


class Provider(Protocol):
    """One engine on one checkpoint, in float32 on the CPU."""

    def load(self, model: str, threads: int) -> None:
        """Import what is needed and load the checkpoint, so far as this engine does so before the first request."""

    def run(self, request: Request, watch: Stopwatch) -> Frames:
        """Frames of a request, [F, H, W, 3] uint8 or floats in [0, 1]; not encoded to a file."""

    def about(self) -> dict[str, Any]:
        """What to print beside its numbers."""


class Glimt:
    """glimt as it comes: no setting but the device and the number of threads."""

    def load(self, model: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        from glimt import Engine

        self._engine = Engine.load(model, device="cpu")

    def run(self, request: Request, watch: Stopwatch) -> Frames:
        import numpy as np

        from glimt import FrameChunk, GenerateRequest, StageEvent

        chunks = []
        for event in self._engine.stream(GenerateRequest(**request.to_dict())):
            if isinstance(event, StageEvent) and event.stage != "done":
                (watch.begin if event.status == "begin" else watch.end)(event.stage)
            elif isinstance(event, FrameChunk):
                chunks.append(event.frames)
        return np.concatenate(chunks)

    def about(self) -> dict[str, Any]:
        import torch

        engine = self._engine
        plan = engine.plan(_smallest(engine.card))
        return {
            "torch threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "dtype": engine.dtype,
            "implementations": plan.implementations,
        }


def _smallest(card: Any) -> Any:
    from glimt import GenerateRequest

    height, width = card.size_multiple
    return GenerateRequest("a ball", height=height, width=width, num_frames=1)


class Diffusers:
    """``diffusers.WanPipeline`` at its best in eager float32: inference mode, no progress bar, arrays out."""

    def load(self, model: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        from diffusers import WanPipeline

        self._pipe = WanPipeline.from_pretrained(model, torch_dtype=torch.float32, local_files_only=True)
        self._pipe.set_progress_bar_config(disable=True)
        self._watch: Stopwatch | None = None
        # Denoising is what lies between the prompt's embeddings and the VAE.
        self._mark(self._pipe, "encode_prompt", "text", after="denoise")
        self._mark(self._pipe.vae, "decode", "decode", before="denoise", close=False)
        self._mark(self._pipe.video_processor, "postprocess_video", "decode", reopen=False)

    def run(self, request: Request, watch: Stopwatch) -> Frames:
        import torch

        values = request.to_dict()
        generator = torch.Generator("cpu").manual_seed(values.pop("seed"))
        self._watch = watch
        try:
            with torch.inference_mode():
                made = self._pipe(**values, generator=generator, output_type="np", max_sequence_length=512)
        finally:
            self._watch = None
        return made.frames[0]

    def about(self) -> dict[str, Any]:
        import torch

        return {
            "torch threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "dtype": str(self._pipe.transformer.dtype).removeprefix("torch."),
            "text encoder dtype": str(self._pipe.text_encoder.dtype).removeprefix("torch."),
        }

    def _mark(
        self,
        owner: Any,
        method: str,
        stage: str,
        *,
        before: str | None = None,
        after: str | None = None,
        close: bool = True,
        reopen: bool = True,
    ) -> None:
        """Have ``owner.method`` count as ``stage``, ending the stage ``before`` it and beginning the one ``after`` it.

        ``close=False`` leaves the stage open, for a later method with ``reopen=False`` to end.
        """
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            watch = self._watch
            if watch is None:
                return inner(*args, **kwargs)
            if before is not None:
                watch.end(before)
            if reopen:
                watch.begin(stage)
            out = inner(*args, **kwargs)
            if close:
                watch.end(stage)
            if after is not None:
                watch.begin(after)
            return out

        setattr(owner, method, timed)

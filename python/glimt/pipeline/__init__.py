"""The stages of a request, each taking values and giving new ones: text, image, denoise, decode."""

from glimt.pipeline.events import Event, FrameChunk, StageEvent, StepState

__all__ = ["Event", "FrameChunk", "StageEvent", "StepState"]

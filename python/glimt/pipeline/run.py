"""One request from beginning to end, as a generator of events. Its state is its own; closing it frees everything."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from glimt.pipeline.clock import Clock
from glimt.pipeline.condition import Condition, Picture, known_channels, known_first_frame, load_pictures, to_pixels
from glimt.pipeline.decode import decode
from glimt.pipeline.denoise import Prompts, Transformers, Velocity, denoise
from glimt.pipeline.events import Event, FrameChunk
from glimt.pipeline.previews import Autoencoders, Previewer
from glimt.pipeline.tiny import decode_tiny
from glimt.plan import GenerationPlan
from glimt_kernels import references_only
from glimt_kernels.dispatch import recording


class Models(Transformers, Autoencoders, Protocol):
    """The networks of a run, wherever they come from. Calls may load what they name."""

    def preload(self, *names: str) -> None:
        """Load those of these networks that there are."""

    def check(self, name: str) -> None:
        """Read the weights of a network for what is wrong with them, and keep none."""

    def keep_only(self, *names: str) -> None:
        """Let go of all networks but these."""

    def embed_texts(self, texts: tuple[str, ...]) -> Tensor:
        """[len(texts), L, text_dim] zero-padded."""

    def embed_pictures(self, pictures: list[Picture]) -> Tensor | None:
        """CLIP tokens [len(pictures), Li, image_dim], or ``None`` where the transformer takes none."""


def run(models: Models, plan: GenerationPlan, keep: list[Tensor] | None = None) -> Generator[Event, None, None]:
    """Run a plan: stage events, a step state per step, frame chunks as they are decoded, and last a report.

    Args:
        keep: gathers the finished latents of each variant, where a list is given.
    """
    clock = Clock(plan)
    events = _events(models, plan, clock, keep)
    try:
        while True:
            # Never across a yield: the consumer's own work is none of it.
            with references_only(plan.exact), recording(clock.record):
                event = next(events, None)
            if event is None:
                return
            yield event
            del event
    finally:
        events.close()


def _events(
    models: Models, plan: GenerationPlan, clock: Clock, keep: list[Tensor] | None
) -> Generator[Event, None, None]:
    asked = plan.request
    _make_room(models, plan, "text")
    yield clock.begin("text", note="; ".join(plan.notes))
    with clock.timing("text"):
        _foresee(models, plan)
        texts = models.embed_texts((asked.prompt, asked.negative_prompt)[: 2 if asked.guided else 1])
    yield clock.end("text")
    condition, image = Condition(), None
    if asked.image is not None:
        _make_room(models, plan, "image")
        yield clock.begin("image")
        with clock.timing("image"):
            condition, image = _look(models, plan)
        yield clock.end("image")
    previewer = Previewer(models, plan)
    if any(stage.name == "preview" for stage in plan.stages):
        _make_room(models, plan, "preview")
        yield clock.begin("preview")
        with clock.timing("preview"):
            previewer.prepare()
        yield clock.end("preview")
    clock.previews = previewer.origin
    velocity = Velocity(models, plan, Prompts(texts, image), condition)
    for variant in range(asked.num_videos_per_prompt):
        _make_room(models, plan, "denoise")
        yield clock.begin("denoise", variant)
        latents = yield from clock.timed("denoise", denoise(velocity, plan, condition, variant, previewer))
        yield clock.end("denoise", variant)
        if keep is not None:
            keep.append(latents)
        if plan.staged:
            velocity.forget()
        _make_room(models, plan, "decode")
        yield clock.begin("decode", variant)
        yield from clock.timed("decode", _decode(models, latents, plan, variant))
        yield clock.end("decode", variant)
    if plan.staged:
        models.keep_only()
    yield clock.done()


def _decode(models: Models, latents: Tensor, plan: GenerationPlan, variant: int) -> Generator[FrameChunk, None, None]:
    if plan.request.decoder == "tiny":
        return decode_tiny(models.tiny(), latents, plan, variant)
    return decode(models.vae(), latents, plan, variant)


def _make_room(models: Models, plan: GenerationPlan, stage: str) -> None:
    """In a staged run a stage has no other networks in memory than the plan counts for it, whoever loaded them."""
    if plan.staged:
        models.keep_only(*plan.stage(stage).networks)


def _foresee(models: Models, plan: GenerationPlan) -> None:
    """Damaged weights are told before the first step and not after the last, as far as that is cheap.

    A staged run looks through the decoder, which it will load last and which is small beside the transformer. A second
    expert it does not: that is as large as the first (28 GB in the A14B models), reading it twice can take minutes and
    drives the first out of the system's cache of files. Its headers were checked when the model was opened, and a NaN
    shows when it is loaded, before it computes anything.
    """
    wanted = dict.fromkeys(name for stage in plan.stages if stage.name != "text" for name in stage.networks)
    if plan.staged:
        for name in wanted:
            if name in ("vae", "tiny_decoder"):
                models.check(name)
    else:
        models.preload(*(name for name in wanted if name != "image_encoder"))


@torch.inference_mode()
def _look(models: Models, plan: GenerationPlan) -> tuple[Condition, Tensor | None]:
    """The request's images as a condition, and as CLIP tokens where the transformer takes them."""
    pictures = load_pictures(plan.request)
    vae = models.vae()
    weight = vae.post_quant_conv.weight
    pixels = [to_pixels(p, plan.clip.height, plan.clip.width).to(weight.device, weight.dtype) for p in pictures]
    if plan.known_frames:
        return known_first_frame(vae, pixels[0]), None
    last = pixels[1] if len(pixels) > 1 else None
    condition = known_channels(vae, pixels[0], last, plan.clip, plan.latents, vae.config.scale_factor_temporal)
    return condition, models.embed_pictures(pictures)

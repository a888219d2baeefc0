"""The calls of ``glimt_kernels`` that a request will make, at its own sizes; makes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from glimt import memory

if TYPE_CHECKING:
    from glimt.models.text import TokenizedPrompt
    from glimt.models.wan.calls import Job, KernelCall
    from glimt.plan.planner import Planner
    from glimt.request import ResolvedRequest
    from glimt.sampling.guidance import StepGuidance


def network_calls(
    planner: Planner,
    asked: ResolvedRequest,
    guidance: Sequence[StepGuidance],
    prompts: Mapping[str, TokenizedPrompt],
    image_tokens: int,
) -> Iterator[KernelCall]:
    """Of the transformer, with as many prompts as a step has, and of the text encoder."""
    import torch

    from glimt.models.wan.calls import text_encoder_calls, transformer_calls

    for guided in sorted({step.scale is not None for step in guidance}):
        texts = [prompt.kept for prompt in prompts.values()][: 2 if guided else 1]
        yield from transformer_calls(planner.transformer, _job(planner, asked, len(guidance), texts, image_tokens))
    for prompt in prompts.values():
        yield from text_encoder_calls(planner.text_encoder, prompt.kept, getattr(torch, planner.dtype))


def _job(planner: Planner, asked: ResolvedRequest, steps: int, texts: Sequence[int], image_tokens: int) -> Job:
    import torch

    from glimt.models.wan.calls import Job

    card, tokens = planner.card, asked.token_grid(planner.card)
    return Job(
        grid=(tokens.t, tokens.y, tokens.x),
        groups=tokens.t if asked.image is not None and card.expand_timesteps else 1,
        timesteps=steps + 1,
        prompts=len(texts),
        text=min(max(texts) + 1, card.text_tokens),  # one key for all padding
        image=image_tokens,
        dtype=getattr(torch, planner.dtype),
        together=planner.device != "cpu",
    )


def pixel_calls(planner: Planner, asked: ResolvedRequest) -> Iterator[KernelCall]:
    """Pixels, which are float32 whatever made them, to bytes: the first chunk and another one."""
    import torch

    from glimt.models.wan.calls import KernelCall

    card, clip = planner.card, asked.pixel_grid()
    more = card.scale_factor_temporal * memory.decode_chunk(planner.vae, asked.latent_grid(card))
    for frames in (more - card.scale_factor_temporal + 1, more):
        pixels = torch.empty(1, 3, frames, clip.height, clip.width, device="meta")
        yield KernelCall("frames_to_uint8", (pixels,))

"""The calls of ``glimt_kernels`` that a request will make, at its own sizes; makes none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from glimt.shapes import PixelGrid

if TYPE_CHECKING:
    from torch import device as Device
    from torch import dtype as DType

    from glimt.models.text import TokenizedPrompt
    from glimt.models.wan.calls import EightBit, Job, KernelCall
    from glimt.plan.planner import Planner
    from glimt.plan.vae import DecodePlan
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
        eight_bit=_eight_bit(planner),
    )


def _eight_bit(planner: Planner) -> EightBit | None:
    import torch

    from glimt.models.wan.calls import EightBit
    from glimt_kernels.attention_8bit.api import preferred
    from glimt_kernels.dispatch import arch_of

    kind, place = planner.config.precision, torch.device(planner.device)
    return None if kind == "full" else EightBit(kind, *preferred(arch_of(place), getattr(torch, planner.dtype)))


def pixel_calls(planner: Planner, clip: PixelGrid) -> Iterator[KernelCall]:
    """Pixels, which are float32 whatever made them, to bytes: a clip's first frame, and chunks as both decoders have
    them."""
    import torch

    from glimt.models.wan.calls import KernelCall

    scale_t = planner.card.scale_factor_temporal
    more = scale_t * planner.plan_decode(clip, None).chunk
    for frames in sorted({1, more - scale_t + 1, more}):
        yield KernelCall("frames_to_uint8", (torch.empty(1, 3, frames, clip.height, clip.width, device="meta"),))


def decoder_calls(planner: Planner, clip: PixelGrid, layout: DecodePlan) -> Iterator[KernelCall]:
    """Of the autoencoder's decoder on a GPU: a clip's first latent frame and a chunk. On a CPU others are called.

    Tiles and what is left over at a clip's end are of other sizes.
    """
    import torch

    from glimt.models.wan.vae_calls import decoder_calls as of_chunk

    card = planner.card
    latents = clip.latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial)
    for frames in (1, layout.chunk) if layout.chunk < latents.frames else (1,):
        of = planner.vae, frames, latents.height, latents.width, layout.piece, getattr(torch, planner.dtype)
        yield from of_chunk(*of, first=True) if frames == 1 else ()
        yield from of_chunk(*of, first=False)


def model_calls(planner: Planner, dtype: DType, device: Device) -> Iterator[KernelCall]:
    """Of any request for a clip of the model's own size and steps on ``device``: any prompt, guided or not, and with an
    image or without one where the model takes either. The autoencoder's are not there."""
    from glimt.models.wan.calls import Job, text_encoder_calls, transformer_calls

    card, clip = planner.card, PixelGrid(planner.card.num_frames, planner.card.height, planner.card.width)
    tokens = clip.latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial).tokens(card.patch)
    images = planner.tokens_of_image * (2 if card.variant == "flf2v" else 1)
    yield from pixel_calls(planner, clip)
    for length in range(1, card.text_tokens + 1):
        yield from text_encoder_calls(planner.text_encoder, length, dtype)
    of_each = product({1, tokens.t if card.expand_timesteps else 1}, (1, 2), (images,), range(2, card.text_tokens + 1))
    for groups, prompts, image, text in of_each:
        job = Job(
            grid=(tokens.t, tokens.y, tokens.x),
            groups=groups,
            timesteps=card.num_inference_steps + 1,
            prompts=prompts,
            text=text,
            image=image,
            dtype=dtype,
            together=device.type != "cpu",
            eight_bit=_eight_bit(planner),
        )
        yield from transformer_calls(planner.transformer, job)

"""From a request and a checkpoint's configs to a plan. Reads no weights, runs no network.

The estimates of seconds rest on a few matrix products that are run and timed once per process
(:func:`glimt.profile.machine_rate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from glimt import memory, profile
from glimt.config import EngineConfig
from glimt.errors import RequestError
from glimt.models.taehv.config import TinyConfig
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.models.zoo import ModelCard
from glimt.plan.calls import decoder_calls, network_calls, pixel_calls
from glimt.plan.floor import ForwardPlan, device_name, forward_plan
from glimt.plan.ops import foreseen
from glimt.plan.previews import FIT_CLIPS, PreviewPlan, fit_grids, plan_preview, plan_tiny_decode, tiny_problems
from glimt.plan.vae import DecodePlan, Way, encode_bytes, plan_decode
from glimt.plan.value import GenerationPlan, OpChoice, StagePlan
from glimt.request import GenerateRequest, ResolvedRequest
from glimt.sampling import schedule as schedules
from glimt.sampling.guidance import StepGuidance, plan_guidance
from glimt.shapes import LatentGrid, PixelGrid

if TYPE_CHECKING:
    from glimt.models.text import TokenizedPrompt
    from glimt.weights.folder import CheckpointFolder

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EXPERTS = ("transformer", "transformer_2")  # for high noise, for low
_NETWORKS = {
    "text": ("text_encoder",),
    "image": ("image_encoder", "vae"),
    "preview": ("vae",),
    "denoise": EXPERTS,
}


def resolve_device(device: str) -> str:
    """``auto`` as the device there is. Raises RequestError for a CUDA device that is not there."""
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        found = (
            f"there are {count}, cuda:0 to cuda:{count - 1}" if count else "this machine has none that PyTorch can use"
        )
        raise RequestError(f"device: no {device!r} here: {found}; use device='cpu' or 'auto'")
    return f"cuda:{index}"


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` as float32 on a CPU and bfloat16 on CUDA."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


@dataclass(frozen=True)
class Planner:
    """Plans requests for one checkpoint under one configuration; immutable."""

    folder: CheckpointFolder
    card: ModelCard
    config: EngineConfig
    device: str
    dtype: str

    @classmethod
    def of(cls, folder: CheckpointFolder, config: EngineConfig) -> Planner:
        """A planner for a checkpoint.

        Raises:
            CheckpointError: configs that do not belong together.
            RequestError: a device that is not there.
        """
        device = resolve_device(config.device)
        return cls(folder, folder.card(), config, device, resolve_dtype(config.dtype, device))

    @cached_property
    def transformer(self) -> WanTransformerConfig:
        return WanTransformerConfig.from_dict(self.folder.component("transformer").config)

    @cached_property
    def vae(self) -> WanVaeConfig:
        return WanVaeConfig.from_dict(self.folder.component("vae").config)

    @cached_property
    def tiny(self) -> TinyConfig | None:
        """The tiny decoder, where there is one."""
        part = self.folder.components.get("tiny_decoder")
        return None if part is None else TinyConfig.from_dict(part.config)

    @cached_property
    def text_encoder(self) -> Mapping[str, Any]:
        return self.folder.component("text_encoder").config

    @cached_property
    def schedule_spec(self) -> schedules.ScheduleSpec:
        return schedules.from_scheduler_config(self.folder.scheduler_config)

    @cached_property
    def weights_bytes(self) -> dict[str, int]:
        """Of each component with weights, in the dtype it will run in."""
        sized = {name: part for name, part in self.folder.components.items() if part.files}
        item = ITEM_BYTES[self.dtype]
        found = {name: part.num_parameters * item or part.num_bytes for name, part in sized.items()}
        if self.config.precision != "full":
            saved = (item - 1) * self.transformer.eight_bit_parameters
            found |= {name: found[name] - saved for name in EXPERTS if name in found}
        return found

    @cached_property
    def tokens_of_image(self) -> int:
        """CLIP tokens of an image that the transformer takes; 0 where it takes none."""
        if not self.transformer.has_image_branch:
            return 0
        config = self.folder.component("image_encoder").config
        return (int(config["image_size"]) // int(config["patch_size"])) ** 2 + 1

    def weights_fit(self) -> bool:
        """Whether all components fit in the memory budget together; there may be no room for a request's activations
        beside them, and it then runs staged."""
        limit = memory.budget(self.config.memory_budget_bytes, self.device).limit_bytes
        return sum(self.weights_bytes.values()) <= limit

    @property
    def by_frames(self) -> bool:
        """Whether the autoencoder's frames go one by one (``glimt.models.wan.vae_cache``)."""
        return self.device == "cpu"

    def plan_decode(self, clip: PixelGrid, room_bytes: int | None) -> DecodePlan:
        """How ``clip`` is decoded in ``room_bytes`` beside the weights; ``None``: where there is room enough."""
        card, room = self.card, 2**63 if room_bytes is None else room_bytes
        latents = clip.latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial)
        way = Way.FRAMES if self.by_frames else Way.PLAIN if self.config.quality == "exact" else Way.KERNELS
        return plan_decode(self.vae, latents, ITEM_BYTES[self.dtype], room, way=way)

    def plan(self, request: GenerateRequest | ResolvedRequest, held_bytes: int = 0) -> GenerationPlan:
        """The plan of a request.

        Args:
            held_bytes: weights that are in memory already; they count as room in the budget.

        Raises:
            RequestError: every field that is wrong for this model.
            CheckpointError: no tokenizer.
        """
        wanted = request.as_request() if isinstance(request, ResolvedRequest) else request
        asked = wanted.resolve(self.card, self._problems)
        schedule = schedules.build(asked.solver, asked.num_inference_steps, asked.shift, spec=self.schedule_spec)
        guidance = plan_guidance(schedule, asked.guidance_scale, asked.guidance_scale_2, self.card.boundary_ratio)
        budget = memory.budget(self.config.memory_budget_bytes, self.device, held_bytes)
        return self._assemble(asked, schedule, guidance, budget)

    def _assemble(
        self,
        asked: ResolvedRequest,
        schedule: schedules.Schedule,
        guidance: tuple[StepGuidance, ...],
        budget: memory.Budget,
    ) -> GenerationPlan:
        work = _Work(self, asked, guidance, self._prompts(asked), budget.limit_bytes)
        staged = max(work.peaks(asked.pixel_grid(), staged=False).values()) > budget.limit_bytes
        stages, source = work.stages(staged)
        decode = work.decoding(asked.pixel_grid(), staged=staged)
        return GenerationPlan(
            model=self.card.name,
            variant=self.card.variant,
            request=asked,
            clip=asked.pixel_grid(),
            latents=asked.latent_grid(self.card),
            tokens=asked.token_grid(self.card),
            text_tokens=self.card.text_tokens,
            schedule=schedule,
            guidance=guidance,
            device=self.device,
            dtype=self.dtype,
            backend=self.config.backend,
            quality=self.config.quality,
            ops=work.ops(),
            stages=stages,
            forward=work.forward(),
            rate_source=source,
            weights_bytes=self.weights_bytes,
            staged=staged,
            budget=budget,
            would_fit=work.would_fit(stages, budget.limit_bytes),
            least_bytes=work.least_bytes(),
            decode=decode,
            preview=work.preview(asked.latent_grid(self.card)),
            known_frames=self.card.expand_timesteps,
            notes=(*_notes(asked, work.prompts), *([decode.note] if decode.note else [])),
        )

    def _prompts(self, asked: ResolvedRequest) -> dict[str, TokenizedPrompt]:
        """The texts that are encoded, by the field each comes from."""
        names = ("prompt", "negative_prompt") if asked.guided else ("prompt",)
        return {name: self.folder.tokenizer(getattr(asked, name)) for name in names}

    def _problems(self, values: Mapping[str, Any]) -> Iterator[str]:
        """What the checkpoint's schedule and its transformer's positions have against a request's values."""
        solver, steps, shift = (values[name] for name in ("solver", "num_inference_steps", "shift"))
        yield from schedules.problems(solver, steps, shift, self.schedule_spec)
        yield from tiny_problems(values, self.card.name, self.tiny, self.config.quality)
        (patch_t, patch_y, patch_x), limit = self.card.patch, self.transformer.rope_max_seq_len
        scale_t, scale_s = self.card.scale_factor_temporal, self.card.scale_factor_spatial
        pixels = (("num_frames", scale_t * patch_t), ("height", scale_s * patch_y), ("width", scale_s * patch_x))
        for name, per_position in pixels:
            size = values[name]
            if isinstance(size, int) and -(-size // per_position) > limit:
                most = limit * per_position - (scale_t - 1 if name == "num_frames" else 0)
                yield f"{name}: {size} is more than the {limit} positions of this model hold; nearest: {most}"


@dataclass(frozen=True)
class _Work:
    """FLOPs, bytes and seconds of one request."""

    planner: Planner
    asked: ResolvedRequest
    guidance: tuple[StepGuidance, ...]
    prompts: dict[str, TokenizedPrompt]
    limit_bytes: int

    @property
    def experts(self) -> int:
        return len({step.expert for step in self.guidance})

    @property
    def text_tokens(self) -> int:
        if self.planner.config.quality == "exact":  # padding is not folded away
            return self.planner.card.text_tokens
        return max(prompt.kept for prompt in self.prompts.values())

    @property
    def image_tokens(self) -> int:
        """Keys that the images' CLIP tokens are to every cross-attention."""
        each = self.planner.tokens_of_image
        return 0 if self.asked.image is None else each if self.asked.last_image is None else 2 * each

    def ops(self) -> tuple[OpChoice, ...]:
        """The implementation of each op that the run calls. Raises RequestError for one that the environment asks for
        and that cannot run, and under ``strict`` if a better one than the one chosen is passed over."""
        from glimt_kernels import references_only

        planner = self.planner
        networks = network_calls(planner, self.asked, self.guidance, self.prompts, self.image_tokens)
        clip = self.asked.pixel_grid()
        pixels = pixel_calls(planner, clip)
        vae = any("vae" in self.networks(stage) for stage in self.flops(staged=False))
        if vae and self.tiny is None and not planner.by_frames:
            networks = chain(networks, decoder_calls(planner, clip, self.decoding(clip, staged=False)))
        with references_only(planner.config.quality == "exact"):
            found = foreseen(networks, pixels, planner.device, planner.dtype, vae=vae)
        passed_over = [line for choice in found for line in choice.passed_over]
        if planner.config.strict and passed_over:
            raise RequestError(*(f"strict: {line}" for line in passed_over))
        return found

    def forward(self) -> ForwardPlan:
        planner, item = self.planner, ITEM_BYTES[self.planner.dtype]
        of = planner.transformer, self.asked.token_grid(planner.card), self.text_tokens, self.image_tokens
        attention = profile.attention_flops(*of)
        eight_bit = planner.config.precision != "full"
        moved = profile.transformer_bytes(*of, item_bytes=item, eight_bit=eight_bit)
        name, kind = device_name(planner.device), planner.config.precision if eight_bit else planner.dtype
        return forward_plan(profile.transformer_flops(*of) - attention, attention, moved, name, kind)

    def flops(self, staged: bool) -> dict[str, int]:
        planner, asked, tokens, image = self.planner, self.asked, self.text_tokens, self.image_tokens
        grid = asked.token_grid(planner.card)
        count = asked.num_videos_per_prompt
        forward = profile.transformer_flops(planner.transformer, grid, tokens, image)
        forwards = sum(1 if step.scale is None else 2 for step in self.guidance)
        contexts = self.experts * len(self.prompts) * profile.context_flops(planner.transformer, tokens, image)
        found = {"text": len(self.prompts) * profile.text_encoder_flops(planner.text_encoder, tokens)}
        if asked.image is not None:
            found["image"] = profile.vae_encode_flops(planner.vae, self._encoded(asked.pixel_grid()))
        preview = self.preview(asked.latent_grid(planner.card))
        if preview is not None and preview.by == "linear":
            cells, pixels = fit_grids(planner.vae)
            each = profile.vae_encode_flops(planner.vae, pixels) + profile.vae_decode_flops(planner.vae, cells)
            found["preview"] = FIT_CLIPS * each
        found["denoise"] = count * forwards * forward + (count if staged else 1) * contexts
        found["decode"] = count * self.decoding(asked.pixel_grid(), staged=staged).flops
        return found

    @property
    def tiny(self) -> TinyConfig | None:
        """The tiny decoder, if it makes the frames."""
        return self.planner.tiny if self.asked.decoder == "tiny" else None

    def preview(self, latents: LatentGrid) -> PreviewPlan | None:
        """What previews of a clip of these latents are; ``None`` where none are asked for."""
        planner, asked = self.planner, self.asked
        if not asked.preview_every:
            return None
        forwards = min(1 if step.scale is None else 2 for step in self.guidance)
        forward = profile.transformer_flops(
            planner.transformer, latents.tokens(planner.card.patch), self.text_tokens, self.image_tokens
        )
        item = ITEM_BYTES[planner.dtype]
        return plan_preview(asked.preview, planner.tiny, planner.vae, latents, forwards * forward, item)

    def _encoded(self, clip: PixelGrid) -> PixelGrid:
        """The clip that is encoded as a condition: one frame, or all of it."""
        return PixelGrid(1, clip.height, clip.width) if self.planner.card.expand_timesteps else clip

    def activations(self, clip: PixelGrid, *, staged: bool) -> dict[str, int]:
        planner, item = self.planner, ITEM_BYTES[self.planner.dtype]
        card = planner.card
        latents = clip.latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial)
        tokens = latents.tokens(card.patch)
        found = {"text": memory.text_bytes(planner.text_encoder, card.text_tokens, item)}
        if self.asked.image is not None:
            found["image"] = encode_bytes(planner.vae, self._encoded(clip), item, by_frames=planner.by_frames)
        networks = 1 if staged else self.experts
        preview = self.preview(latents)
        if preview is not None and preview.by == "linear":
            _, pixels = fit_grids(planner.vae)
            decoding = planner.plan_decode(pixels, None).peak_bytes
            found["preview"] = max(encode_bytes(planner.vae, pixels, item, by_frames=planner.by_frames), decoding)
        found["denoise"] = memory.denoise_bytes(
            planner.transformer, latents, tokens, card.text_tokens, len(self.prompts), item, networks
        )
        found["denoise"] += preview.peak_bytes if preview is not None else 0
        found["decode"] = self.decoding(clip, staged=staged).peak_bytes
        return found

    def decoding(self, clip: PixelGrid, *, staged: bool) -> DecodePlan:
        """Whole pictures where components stay in memory or the decoder is tiny; else what fits beside the VAE."""
        if self.tiny is not None:
            latents = clip.latents(self.planner.card.z_dim, self.tiny.scale_t, self.tiny.scale_s)
            return plan_tiny_decode(self.tiny, latents, ITEM_BYTES[self.planner.dtype])
        weights = sum(self.planner.weights_bytes[name] for name in self.networks("decode"))
        return self.planner.plan_decode(clip, self.limit_bytes - weights if staged else None)

    def networks(self, stage: str) -> tuple[str, ...]:
        """The components with weights that a stage runs."""
        names = _NETWORKS[stage] if stage != "decode" else ("tiny_decoder" if self.tiny is not None else "vae",)
        if stage == "denoise":
            preview = self.preview(self.asked.latent_grid(self.planner.card))
            names = (*names, "tiny_decoder") if preview is not None and preview.by == "tiny" else names
        return tuple(name for name in names if name in self.planner.weights_bytes)

    def peaks(self, clip: PixelGrid, *, staged: bool) -> dict[str, int]:
        """Bytes of each stage: all weights, or only its own, and its activations."""
        weights = self.planner.weights_bytes
        found = {}
        for stage, size in self.activations(clip, staged=staged).items():
            own = {name: weights[name] for name in self.networks(stage)}
            if EXPERTS[1] in own:  # two experts are never needed at once: a staged run holds the larger
                own[EXPERTS[0]] = max(own[EXPERTS[0]], own.pop(EXPERTS[1]))
            found[stage] = sum((own if staged else weights).values()) + size
        return found

    def stages(self, staged: bool) -> tuple[tuple[StagePlan, ...], str]:
        rate = profile.machine_rate(self.planner.device, self.planner.dtype)
        peaks = self.peaks(self.asked.pixel_grid(), staged=staged)
        stages = tuple(
            StagePlan(name, self.networks(name), flops, profile.estimated_seconds(name, flops, rate), peaks[name])
            for name, flops in self.flops(staged).items()
        )
        return stages, f"estimated from {rate.flops_per_s / 1e9:.0f} GFLOP/s measured ({rate.source})"

    def would_fit(self, stages: tuple[StagePlan, ...], limit_bytes: int) -> tuple[str, ...]:
        if max(stage.peak_bytes for stage in stages) <= limit_bytes:
            return ()
        clip, card = self.asked.pixel_grid(), self.planner.card
        found = memory.what_would_fit(self._least, clip, card.scale_factor_temporal, card.size_multiple, limit_bytes)
        return tuple(found)

    def least_bytes(self) -> int:
        """What the smallest clip needs."""
        return self._least(memory.smallest(self.planner.card.size_multiple))

    def _least(self, clip: PixelGrid) -> int:
        return max(self.peaks(clip, staged=True).values())


def _notes(asked: ResolvedRequest, prompts: Mapping[str, TokenizedPrompt]) -> Iterator[str]:
    if asked.negative_prompt and not asked.guided:
        yield f"negative_prompt has no effect: guidance_scale {asked.guidance_scale:g} turns guidance off"
    yield from (f"{name}: {prompt.note}" for name, prompt in prompts.items() if prompt.note)

"""The engine: a checkpoint made ready, and three verbs on it.

    engine = Engine.load()
    print(engine.plan(request))
    for event in engine.stream(request): ...
    result = engine.generate(request)

and the autoencoder by itself: ``encode`` frames, ``decode`` latents, both as streams.

An engine does not change after loading, but for components and text embeddings that it keeps once they were needed.
Nothing of a request is stored on it: several may run at once, from several threads or interleaved, and each gives the
bits it gives alone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from glimt.check import check_clip, check_decoder, latent_grid
from glimt.compile.record import Build, BuiltEngine
from glimt.compile.spec import TARGETS, CompileSpec
from glimt.config import EngineConfig
from glimt.errors import GlimtError, RequestError
from glimt.models.zoo import BUNDLED, ModelCard
from glimt.pipeline.compiling import compiled, require_engines
from glimt.pipeline.components import Components
from glimt.pipeline.decode import decoded
from glimt.pipeline.encode import encode
from glimt.pipeline.events import Event, FrameChunk, Frames, StageEvent
from glimt.pipeline.foreign import ForeignVae
from glimt.pipeline.run import run
from glimt.pipeline.tiny import decoded_tiny
from glimt.plan import EXPERTS, DecodePlan, GenerationPlan, Planner, autoencode
from glimt.report import Provenance, RunReport, VideoResult, frames_sha256
from glimt.request import GenerateRequest, ResolvedRequest
from glimt.shapes import PixelGrid
from glimt.weights.folder import TINY
from glimt.weights.hub import open_model
from glimt.weights.tiny import with_tiny
from glimt_kernels import references_only

Request = GenerateRequest | ResolvedRequest
NETWORK_OF = {"vae": "vae", "tiny": TINY}  # the component that a decoder is


class Engine:
    """A checkpoint, a configuration, and what it takes to run requests. Made by :meth:`load` or :meth:`open`."""

    def __init__(self, planner: Planner, components: Components) -> None:
        self._planner = planner
        self._components = components

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = BUNDLED,
        config: EngineConfig | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Engine:
        """An engine with transformers and VAE in memory; the text encoder follows with the first new prompt.

        A checkpoint whose components do not fit together in the memory budget is only opened, see :meth:`open`.

        Args:
            model: ``"glimt-world"`` (bundled), a folder in the Diffusers layout, a safetensors file in the official
                Wan layout, or a Hub id.
            config: settings; the defaults when not given.
            base: for a file or folder that holds a transformer alone: the model that has the other components.
            overrides: single settings, as in ``device="cpu"``; they win over ``config``.

        Raises:
            RequestError: unknown or bad settings, a device that is not there.
            CheckpointError: no such model, or everything that is wrong with it.
            KeyMismatchError: the backend runs TRT engines, and none was built for this: names what differs.
            CompileError: it has been built and cannot be run here. It is never run eagerly instead.
        """
        engine = cls.open(model, config, base=base, **overrides)
        engine.preload()
        return engine

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str] = BUNDLED,
        config: EngineConfig | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Engine:
        """As :meth:`load`, but reads configs and headers only, which is enough to plan; weights follow when needed."""
        settings = (config or EngineConfig()).override(**overrides)
        folder = open_model(model, base=base, offline=settings.offline, allow_pickle=settings.allow_pickle)
        if settings.tiny_decoder is not None:
            folder = with_tiny(folder, Path(settings.tiny_decoder).expanduser(), allow_pickle=settings.allow_pickle)
        planner = Planner.of(folder, settings)
        if settings.backend in TARGETS:
            require_engines(planner)
        made = Components(
            folder,
            planner.device,
            planner.dtype,
            allow_pickle=settings.allow_pickle,
            precision=settings.precision,
            backend=settings.backend,
        )
        return cls(planner, made)

    def preload(self) -> None:
        """Bring transformers and VAE into memory now, if all components fit there together, as :meth:`load` does.

        Raises:
            CheckpointError: everything that is wrong with them.
        """
        if self._planner.weights_fit():
            self._components.preload(*EXPERTS, "vae")

    @property
    def card(self) -> ModelCard:
        """What the model is, and its defaults."""
        return self._planner.card

    @property
    def config(self) -> EngineConfig:
        return self._planner.config

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:<index>``."""
        return self._planner.device

    @property
    def dtype(self) -> str:
        """Of the networks' arithmetic."""
        return self._planner.dtype

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over everything the checkpoint is made of but a tiny decoder. Reads every byte once."""
        return self._planner.folder.digest()

    def plan(self, request: Request) -> GenerationPlan:
        """What ``request`` will do and need. Runs no network (the first plan of a process times a matrix product).

        A request that needs more memory than there is gets a plan too: ``plan.fits`` is false, and it says what would.

        Raises:
            RequestError: every field that is wrong for this model.
            CheckpointError: no tokenizer.
        """
        return self._planner.plan(request, self._components.held_bytes())

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Run ``request``; yields stage events, a step state after every step, frames as they are decoded.

        The request is checked here and now; the work is done as events are taken. Closing the generator (or leaving a
        loop over it and dropping it) cancels within a step and frees the request's memory. The last event is
        ``StageEvent("done")`` with the report.

        Raises:
            RequestError: as :meth:`plan`. MemoryBudgetError: it does not fit; says what would.
            CheckpointError: from the generator: a component that cannot be loaded.
            NonFiniteError: from the generator: NaN, infinity or flat latents.
        """
        return self._run(request)[1]

    def generate(self, request: Request, *, keep_latents: bool = False) -> VideoResult:
        """Run ``request`` to its end. Raises what :meth:`stream` and its generator raise.

        Args:
            keep_latents: also keep the finished latents.
        """
        kept: list[Any] | None = [] if keep_latents else None
        plan, events = self._run(request, kept)
        chunks: list[list[Frames]] = [[] for _ in plan.request.seeds]
        report: RunReport | None = None
        for event in events:
            if isinstance(event, FrameChunk):
                chunks[event.variant].append(event.frames)
            elif isinstance(event, StageEvent):
                report = event.report or report
        videos = tuple(np.concatenate(parts) for parts in chunks)
        if report is None:
            raise GlimtError("the run ended without a report")
        digests = tuple(frames_sha256(frames) for frames in videos)
        provenance = self._provenance(plan, report.implementations, digests)
        return VideoResult(videos, plan.request.fps, report, provenance, None if kept is None else tuple(kept))

    def plan_decode(
        self, shape: Sequence[int], *, memory_budget: int | None = None, decoder: str = "vae"
    ) -> DecodePlan:
        """How latents of ``shape`` [1, C, f, h, w] are decoded: chunk, tiles, and the memory that takes.

        Args:
            memory_budget: bytes, in place of the configured ones.
            decoder: ``"vae"``, or ``"tiny"``, which is faster and changes the picture (class lossy).

        Raises:
            RequestError: latents that are not of this model, a decoder that is not there or not allowed.
            MemoryBudgetError: says what would fit.
        """
        check_decoder(decoder)
        grid, held = latent_grid(shape, self.card), self._components.held_bytes(NETWORK_OF[decoder])
        return autoencode.plan_decode(self._planner, grid, memory_budget, held, decoder)

    def decode(
        self,
        latents: Tensor,
        *,
        fps: float | None = None,
        memory_budget: int | None = None,
        decoder: str = "vae",
        vae: ForeignVae | str | os.PathLike[str] | None = None,
    ) -> Generator[FrameChunk, None, None]:
        """Frames of normalized latents [1, C, f, h, w], in chunks and tiles that fit in ``memory_budget`` bytes.

        ``fps``: of the clip, the model's own if not given. ``decoder``, and what is raised here and now: as for
        :meth:`plan_decode`; from the generator what :meth:`stream` raises of its decoding.

        ``vae``: another family's autoencoder (Hunyuan, LTX, CogVideoX, SVD) in place of this model's, a folder that
        Diffusers wrote. That package decodes, the whole clip at once, and nothing of its memory is planned.
        """
        if vae is not None:
            return self._decode_foreign(latents, fps, memory_budget, decoder, vae)
        layout = self.plan_decode(latents.shape, memory_budget=memory_budget, decoder=decoder)
        return self._decode(latents, layout, self.card.fps if fps is None else fps, decoder)

    def plan_encode(self, clip: PixelGrid, *, memory_budget: int | None = None) -> int:
        """Bytes that encoding ``clip`` takes beside the weights.

        Raises:
            RequestError: every size that is not on the model's grid. MemoryBudgetError: says what would fit.
        """
        check_clip(clip, self.card)
        return autoencode.require_encode(self._planner, clip, memory_budget, self._held_vae())

    def encode(self, frames: Iterable[Frames]) -> Tensor:
        """Normalized latents [1, C, f, h, w], float32, of frames [n, H, W, 3] uint8 that come n at a time.

        Raises:
            RequestError: sizes that are not on the model's grid; see also :meth:`plan_encode`, which looks at memory.
            CheckpointError, NonFiniteError: as for :meth:`stream`.
        """
        with references_only(self.config.quality == "exact"):
            return encode(self._components.vae(), frames)

    def normalized(self, latents: Tensor) -> Tensor:
        """Latents [B, C, f, h, w] of the autoencoder's own scale in that of the transformer, which ``decode`` takes."""
        return self._components.vae().normalize(latents)

    def vae_digest(self) -> str:
        """SHA-256, in hex, of the autoencoder: whose latents these are. Reads its bytes once."""
        return self._planner.folder.component("vae").digest()

    def provenance(self, request: Request, variant: int = 0) -> dict[str, Any]:
        """The settings record that belongs into the file of one variant of ``request``; see ``glimt.video.record``.

        Its implementations are those that the plan foresees; those that ran are in the run's events and report.
        """
        plan = self.plan(request)
        return self._provenance(plan, plan.implementations).record(variant)

    def compiling(self, spec: CompileSpec) -> Iterator[BuiltEngine]:
        """As :meth:`compile`, each TRT engine as it is made, which may take minutes."""
        return compiled(self._planner, spec)

    def compile(self, spec: CompileSpec) -> Build:
        """TRT engines of the transformers, for other cards and on a machine without one as ``spec`` says.

        They are kept in ``config.engines`` under their keys; what is there already is not made again. This engine
        stays as it is: load another with the backend to run them.

        Raises:
            RequestError: sizes that this model does not have. MissingDependencyError: a package to compile with.
            CompileError: a card that cannot be built for here, what the compiler had to say, a full disk.
        """
        return Build(spec, tuple(self.compiling(spec)))

    def close(self) -> None:
        """Let go of all components and embeddings. Runs under way go on; a later request loads anew."""
        self._components.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.card.name!r}, device={self.device!r}, dtype={self.dtype!r})"

    def _run(
        self, request: Request, keep: list[Any] | None = None
    ) -> tuple[GenerationPlan, Generator[Event, None, None]]:
        plan = self.plan(request)
        plan.require_fit()
        return plan, run(self._components, plan, keep)

    def _held_vae(self) -> int:
        return self._components.held_bytes("vae")

    def _decode(
        self, latents: Tensor, layout: DecodePlan, fps: float, decoder: str
    ) -> Generator[FrameChunk, None, None]:
        index, latents = 0, latents.to(self.device)
        if decoder == "tiny":
            frames = decoded_tiny(self._components.tiny(), latents, layout)
        else:
            frames = decoded(self._components.vae(), latents, layout)
        try:
            while True:
                with references_only(self.config.quality == "exact"):  # never across a yield
                    some = next(frames, None)
                if some is None:
                    return
                yield FrameChunk(index, some, fps)
                index += len(some)
        finally:
            frames.close()

    def _decode_foreign(
        self,
        latents: Tensor,
        fps: float | None,
        memory_budget: int | None,
        decoder: str,
        vae: ForeignVae | str | os.PathLike[str],
    ) -> Generator[FrameChunk, None, None]:
        if memory_budget is not None:
            raise RequestError("memory_budget: an autoencoder of Diffusers decodes whole clips; leave it out with vae")
        if decoder != "vae":
            raise RequestError(f"decoder: {decoder!r} is of this engine's model; leave it out with vae")
        opened = vae if isinstance(vae, ForeignVae) else ForeignVae.open(vae, self.device, self.dtype)
        opened.check(latents)
        return (FrameChunk(0, opened.decode(latents), self.card.fps if fps is None else fps) for _ in range(1))

    def _provenance(
        self, plan: GenerationPlan, implementations: dict[str, str], digests: tuple[str, ...] = ()
    ) -> Provenance:
        folder, tiny = self._planner.folder, plan.request.decoder == "tiny"
        return Provenance(
            model=plan.model,
            model_digest=folder.digest(tiny=tiny),
            origin=folder.origin,
            request=plan.request,
            config=self.config.to_dict(),
            device=plan.device,
            dtype=plan.dtype,
            implementations=implementations,
            notes=plan.notes,
            frames_sha256=digests,
            components=folder.digests(tiny=tiny),
        )

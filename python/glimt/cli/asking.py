"""From what was typed to the engine's own values, with the problems of both reported together."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glimt.check import check_without_model
from glimt.config import EngineConfig
from glimt.errors import GlimtError, RequestError
from glimt.request import GenerateRequest

if TYPE_CHECKING:
    from pathlib import Path

    from glimt.engine import Engine
    from glimt.plan import GenerationPlan


class Problems:
    """Gathers the problems of several checks: ``with problems.gathered(): check()``, then ``raise_any()``."""

    def __init__(self) -> None:
        self._errors: list[GlimtError] = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except GlimtError as error:
            self._errors.append(error)

    @property
    def found(self) -> bool:
        return bool(self._errors)

    def error(self, more: Problems | None = None) -> GlimtError:
        """The one error there was, or one RequestError with the problems of all, those of ``more`` among them."""
        errors = [*self._errors, *(more._errors if more else ())]
        if len(errors) == 1:
            return errors[0]
        return RequestError(*(problem for error in errors for problem in error.problems))

    def raise_any(self) -> None:
        if self._errors:
            raise self.error()


def planned(
    namespace: argparse.Namespace, request: GenerateRequest, problems: Problems
) -> tuple[Engine, GenerationPlan]:
    """The engine that was asked for, opened, and what ``request`` would do on it; no weights are read for it.

    What is wrong is added to ``problems``, and raised where it leaves no plan. Settings that cannot be stand back for
    the defaults, so that the request is checked all the same; without a model it is held to the rules that all models
    have. Once anything is wrong nothing is downloaded.
    """
    config = EngineConfig(allow_pickle=bool(namespace.allow_pickle))
    with problems.gathered():
        config = engine_config(namespace)
    anyway = Problems()  # of the request, whatever the model; a model's own rules find them too
    with anyway.gathered():
        check_without_model(request)
    if problems.found or anyway.found:
        from glimt.weights.hub import whereabouts

        if any(name is not None and whereabouts(name) == "hub" for name in (namespace.model, namespace.base)):
            raise problems.error(anyway)
        config = config.override(offline=True)
    engine = None
    with problems.gathered():
        engine = opened(namespace, namespace.model, namespace.base, config)
    if engine is None:
        raise problems.error(anyway)
    with problems.gathered():
        plan = engine.plan(request)
        if plan.request.image is not None:
            from glimt.pipeline.condition import load_pictures

            load_pictures(plan.request)
        return engine, plan
    raise problems.error()


def opened(namespace: argparse.Namespace, model: str | Path, base: str | Path | None, config: EngineConfig) -> Engine:
    """The engine of ``model``, its weights not read yet, but downloaded where it is on the Hub.

    The Hub draws bars of its own, so none of ours may be on the screen meanwhile; with ``--quiet`` it draws none.
    """
    from glimt.engine import Engine  # takes a second: PyTorch comes with it
    from glimt.weights.hub import quiet_downloads

    is_quiet = getattr(namespace, "quiet", False)  # `glimt plan` has no such option
    with quiet_downloads(model, base) if is_quiet else contextlib.nullcontext():
        return Engine.open(model, config, base=base)


def engine_config(namespace: argparse.Namespace, recorded: dict[str, Any] | None = None) -> EngineConfig:
    """The configuration asked for: what was typed, else what was ``recorded``, else the defaults."""
    typed = {
        "device": namespace.device,
        "dtype": namespace.dtype,
        "precision": namespace.precision,
        "quality": namespace.quality,
        "backend": namespace.backend,
        "engines": namespace.engines,
        "memory_budget_bytes": namespace.memory_budget,
        "offline": namespace.offline,
        "strict": namespace.strict,
        "allow_pickle": namespace.allow_pickle,
        "tiny_decoder": namespace.tiny_decoder,
    }
    given = {name: value for name, value in typed.items() if value is not None}
    return EngineConfig.from_mapping({**(recorded or {}), **given})


def generate_request(namespace: argparse.Namespace, preview_every: int = 0) -> GenerateRequest:
    """The request asked for; what was not typed stays ``None`` and is the model's to say."""
    width, height = namespace.size if namespace.size is not None else (None, None)
    return GenerateRequest(
        prompt=namespace.prompt,
        negative_prompt=namespace.negative,
        height=height,
        width=width,
        num_frames=namespace.frames,
        fps=namespace.fps,
        num_inference_steps=namespace.steps,
        guidance_scale=namespace.guidance,
        guidance_scale_2=namespace.guidance_2,
        seed=namespace.seed,
        solver=namespace.solver,
        shift=namespace.shift,
        image=namespace.image,
        last_image=namespace.last_image,
        num_videos_per_prompt=namespace.variants,
        preview_every=preview_every,
        preview=getattr(namespace, "preview", None) or "auto",  # `glimt plan` has no such option
        decoder=namespace.decoder,
    )

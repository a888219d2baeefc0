"""The rules a request is held to. Every rule is run; all that fail are reported in one error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from glimt.errors import RequestError
from glimt.images import check_image
from glimt.request import DECODERS, MAX_SEED, PREVIEWS, SOLVERS, Card, Further, GenerateRequest, ResolvedRequest
from glimt.shapes import LatentGrid, PixelGrid, nearest_sizes, round_frames
from glimt.suggest import did_you_mean

_MODEL_DEFAULTS = (
    "height",
    "width",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "solver",
    "shift",
)
# Solvers of distilled models, with the steps they are mostly distilled for; without a shift they use their own.
FEW_STEPS = {"dmd": 3, "rcm": 4}
MAX_VARIANTS = 1000
FPS_RANGE = (0.01, 240)
_FLOATS = ("fps", "guidance_scale", "guidance_scale_2", "shift")


def check_request(request: GenerateRequest, card: Card, further: Further) -> ResolvedRequest:
    """See :meth:`glimt.request.GenerateRequest.resolve`."""
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    defaults = _defaults(request, card)
    for name in _MODEL_DEFAULTS:
        if values[name] is None:
            values[name] = defaults[name]
    problems = [
        *_text_problems(values),
        *_shape_problems(values, card),
        *_number_problems(values),
        *_choice_problems(values),
        *_expert_problems(values, card),
        *_image_problems(values, card),
    ]
    told = {problem.partition(":")[0] for problem in problems}
    problems += [problem for problem in further(values) if problem.partition(":")[0] not in told]
    if problems:
        raise RequestError(*problems)
    if card.boundary_ratio is not None and values["guidance_scale_2"] is None:
        # The model's own second scale belongs to its own first one: a caller who sets the first means both.
        default = card.guidance_scale_2 if request.guidance_scale is None else None
        values["guidance_scale_2"] = values["guidance_scale"] if default is None else default
    for name in _FLOATS:
        values[name] = None if values[name] is None else float(values[name])
    return ResolvedRequest(**values)


def check_without_model(request: GenerateRequest) -> None:
    """The rules that every model has, for where there is none to check the request against.

    Raises:
        RequestError: naming every field that no model could meet; fields left to the model are passed over.
    """
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    problems = [
        *_least_problems(values),
        *_number_problems(values),
        *_choice_problems(values),
        *_picture_problems(values),
    ]
    problems = [problem for problem in problems if values[problem.partition(":")[0]] is not None]
    if problems := [*_text_problems(values), *problems]:
        raise RequestError(*problems)


def _defaults(request: GenerateRequest, card: Card) -> dict[str, Any]:
    """The model's defaults; for a solver that is not the model's own, that solver's number of steps and shift."""
    defaults = {name: getattr(card, name) for name in _MODEL_DEFAULTS}
    solver = card.solver if request.solver is None else request.solver
    if solver in FEW_STEPS:
        defaults["shift"] = card.shift if solver == card.solver and solver != "rcm" else None
        if solver != card.solver:
            defaults["num_inference_steps"] = FEW_STEPS[solver]
    return defaults


def _text_problems(values: dict[str, Any]) -> Iterator[str]:
    for name in ("prompt", "negative_prompt"):
        text = values[name]
        if not isinstance(text, str):
            yield f"{name}: a {type(text).__name__} is not text"
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            yield f"{name}: character {error.start} cannot be encoded as UTF-8 (a lone surrogate)"
    if isinstance(values["prompt"], str) and not values["prompt"].strip():
        yield "prompt: empty; say what is to be seen"


def _shape_problems(values: dict[str, Any], card: Card) -> Iterator[str]:
    scale_t, scale_s = card.scale_factor_temporal, card.scale_factor_spatial
    frames = values["num_frames"]
    if not _whole(frames):
        yield f"num_frames: {frames!r} is not a whole number"
    elif len(legal := round_frames(frames, scale_t)) > 1 or frames < 1:
        yield f"num_frames: {frames} is not {scale_t}n + 1; nearest: {_either(legal)}"
    for name, patch in (("height", card.patch[1]), ("width", card.patch[2])):
        size, multiple = values[name], scale_s * patch
        if not _whole(size):
            yield f"{name}: {size!r} is not a whole number of pixels"
        elif nearest_sizes(size, multiple) != (size,):
            yield (
                f"{name}: {size} is not a positive multiple of {multiple}; "
                f"nearest: {_either(nearest_sizes(size, multiple))}"
            )


def _least_problems(values: dict[str, Any]) -> Iterator[str]:
    for name in ("num_frames", "height", "width"):
        if not _whole(values[name]) or values[name] < 1:
            yield f"{name}: {values[name]!r} is not a positive whole number"


def _picture_problems(values: dict[str, Any]) -> Iterator[str]:
    for name in ("image", "last_image"):
        if values[name] is not None:
            yield from (f"{name}: {problem}" for problem in check_image(values[name]))


def _number_problems(values: dict[str, Any]) -> Iterator[str]:
    steps, count, previews = (values[n] for n in ("num_inference_steps", "num_videos_per_prompt", "preview_every"))
    if not _whole(steps) or not 1 <= steps <= 1000:
        yield f"num_inference_steps: {steps!r} is not a whole number from 1 to 1000{_clamped(steps, 1, 1000)}"
    if not _whole(count) or not 1 <= count <= MAX_VARIANTS:
        nearest = _clamped(count, 1, MAX_VARIANTS)
        yield f"num_videos_per_prompt: {count!r} is not a whole number from 1 to {MAX_VARIANTS}{nearest}"
    if not _whole(previews) or previews < 0:
        yield f"preview_every: {previews!r} is not a whole number of at least 0 (0: no previews)"
    last = MAX_SEED - (count - 1 if _whole(count) and 1 <= count <= MAX_VARIANTS else 0)
    if not _whole(values["seed"]) or not 0 <= values["seed"] <= last:
        yield f"seed: {values['seed']!r} is not a whole number from 0 to {last}{_clamped(values['seed'], 0, last)}"
    low, high = FPS_RANGE
    if not _finite(values["fps"]) or not low <= values["fps"] <= high:
        nearest = f"; nearest: {min(max(values['fps'], low), high)}" if _finite(values["fps"]) else ""
        yield f"fps: {values['fps']!r} is not a number from {low} to {high}{nearest}"
    yield from _shift_problems(values["shift"], values["solver"])
    for name in ("guidance_scale", "guidance_scale_2"):
        scale = values[name]
        if name == "guidance_scale_2" and scale is None:
            continue
        if not _finite(scale) or scale < 0:
            yield f"{name}: {scale!r} is not a finite number of at least 0 (1 or less: no guidance)"


def _shift_problems(shift: Any, solver: object) -> Iterator[str]:
    if shift is None and solver in FEW_STEPS:
        return
    if not _finite(shift) or shift <= 0:
        yield f"shift: {shift!r} is not a finite number above 0"
    elif solver == "rcm":
        yield f"shift: {shift!r} does not apply to solver 'rcm', whose times are fixed; leave it out"


def _choice_problems(values: dict[str, Any]) -> Iterator[str]:
    for name, choices in (("solver", SOLVERS), ("preview", PREVIEWS), ("decoder", DECODERS)):
        yield from _choice_problem(name, values[name], choices)


def _choice_problem(name: str, value: object, choices: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(value, str) or value not in choices:
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        yield f"{name}: {value!r} is not one of {', '.join(map(repr, choices))}{near}"


def check_decoder(decoder: object) -> None:
    """Raise RequestError unless it is the name of one."""
    problems = tuple(_choice_problem("decoder", decoder, DECODERS))
    if problems:
        raise RequestError(*problems)


def _expert_problems(values: dict[str, Any], card: Card) -> Iterator[str]:
    if card.boundary_ratio is None and values["guidance_scale_2"] is not None:
        yield f"guidance_scale_2: {card.name} has one transformer; leave this out and use guidance_scale"


def _image_problems(values: dict[str, Any], card: Card) -> Iterator[str]:
    takes, needs = accepted_images(card)
    for name in ("image", "last_image"):
        if values[name] is not None and name not in takes:
            yield f"{name}: {card.name} ({card.variant}) takes no {name.replace('_', ' ')}; leave it out"
        elif values[name] is None and name in needs:
            yield f"{name}: missing; {card.name} ({card.variant}) starts from one: a path, a PIL image or an array"
        elif values[name] is not None:
            yield from (f"{name}: {problem}" for problem in check_image(values[name]))
    if values["last_image"] is not None and values["image"] is None and "image" not in needs:
        yield "image: missing; last_image is used together with image"
    if values["last_image"] is not None and values["num_frames"] == 1:
        yield "num_frames: 1 leaves no room for last_image; use 5 or more"


def accepted_images(card: Card) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the image fields a model takes, and of those it cannot do without."""
    both = frozenset({"image", "last_image"})
    first = frozenset({"image"})
    if card.variant == "flf2v":
        return both, both
    if card.variant == "i2v":  # its CLIP branch has room for one image
        return first, first
    if card.variant == "i2v-a14b":
        return both, first
    return (first, frozenset()) if card.expand_timesteps else (frozenset(), frozenset())


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _either(values: tuple[int, ...]) -> str:
    return " or ".join(str(value) for value in values)


def _clamped(value: object, low: int, high: int) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    return f"; nearest: {min(max(value, low), high)}"


def check_clip(clip: PixelGrid, card: Card) -> None:
    """RequestError that names every size of ``clip`` that an autoencoder cannot take, with the nearest that it can."""
    scale_t, scale_s = card.scale_factor_temporal, card.scale_factor_spatial
    problems = []
    if (clip.frames - 1) % scale_t:
        nearest = _either(round_frames(clip.frames, scale_t))
        problems.append(f"num_frames: {clip.frames} is not {scale_t} n + 1; nearest: {nearest}")
    for name in ("height", "width"):
        size = getattr(clip, name)
        if size % scale_s:
            nearest = _either(nearest_sizes(size, scale_s))
            problems.append(f"{name}: {size} is not a multiple of {scale_s}; nearest: {nearest}")
    if problems:
        raise RequestError(*problems)


def latent_grid(shape: Sequence[int], card: Card) -> LatentGrid:
    """The grid of latents of ``shape`` [1, C, f, h, w]. RequestError where they are not of this model."""
    if len(shape) != 5 or shape[0] != 1 or shape[1] != card.z_dim or min(shape) < 1:
        raise RequestError(f"latents: {list(shape)} are not of {card.name}; it takes [1, {card.z_dim}, f, h, w]")
    return LatentGrid(*shape[1:])

"""What is asked of an engine: a frozen value, and its check against one model.

``GenerateRequest`` holds what the caller wrote, with ``None`` for "as the model likes it".
``GenerateRequest.resolve(card)`` fills in the model's defaults and checks everything at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from glimt.errors import RequestError
from glimt.images import ImageSource, as_image_source, image_from_dict, image_to_dict
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid
from glimt.suggest import checked_keywords, unknown_names

Further = Callable[[Mapping[str, Any]], Iterable[str]]
SOLVERS = ("unipc", "euler", "dmd", "rcm")
DECODERS = ("vae", "tiny")
PREVIEWS = ("auto", "tiny", "linear")
MAX_SEED = 2**63 - 1


class Card(Protocol):
    """What a request must know of a model; ``glimt.models.zoo.ModelCard`` has these fields.

    ``height`` ... ``solver`` are the model's defaults under the names of the request's fields.
    """

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_scale_2(self) -> float | None: ...
    @property
    def shift(self) -> float: ...
    @property
    def solver(self) -> str: ...
    @property
    def scale_factor_temporal(self) -> int: ...
    @property
    def scale_factor_spatial(self) -> int: ...
    @property
    def z_dim(self) -> int: ...
    @property
    def patch(self) -> tuple[int, int, int]: ...
    @property
    def expand_timesteps(self) -> bool: ...
    @property
    def boundary_ratio(self) -> float | None: ...


@checked_keywords("field")
@dataclass(frozen=True)
class GenerateRequest:
    """One clip, or ``num_videos_per_prompt`` of them, from a prompt. ``None`` takes the model's default.

    Attributes:
        prompt: what is to be seen; not empty.
        negative_prompt: what is not; used only where guidance is on.
        height, width: pixels, multiples of the model's grid.
        num_frames: ``scale * n + 1`` with the VAE's scale in time (4 for Wan).
        fps: frames per second of the clip.
        num_inference_steps: denoising steps, 1 to 1000.
        guidance_scale: weight of classifier-free guidance, >= 0; at most 1 turns guidance off.
        guidance_scale_2: the same for the low-noise expert of a model with two; the first when ``None``.
        seed: of the initial noise, 0 to 2^63 - 1. Variant i is drawn with ``seed + i``.
        solver: ``unipc``, ``euler``, ``dmd`` or ``rcm``.
        shift: timestep shift of the noise schedule, > 0.
        image, last_image: first and last frame, for models that take them: a path, a PIL image, or an array
            [H, W, 3] of uint8 or of floats in [0, 1]. Arrays are copied: later changes to them have no effect.
        num_videos_per_prompt: how many variants, 1 to 1000.
        preview_every: offer a preview every so many steps; 0 never.
        preview: what makes previews: ``tiny`` is the tiny decoder, ``linear`` a linear map from latents to pixels,
            ``auto`` the tiny decoder where there is one that costs at most 2 % of a step, else the map.
        decoder: what makes the frames: ``vae``, or ``tiny``, which is faster and changes the picture (class lossy).
    """

    prompt: str
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    seed: int = 0
    solver: str | None = None
    shift: float | None = None
    image: Any = None
    last_image: Any = None
    num_videos_per_prompt: int = 1
    preview_every: int = 0
    preview: str = "auto"
    decoder: str = "vae"

    def __post_init__(self) -> None:
        for name in ("image", "last_image"):
            object.__setattr__(self, name, as_image_source(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; images as their path and digest, or packed whole when they came from memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "image": image_to_dict(self.image), "last_image": image_to_dict(self.last_image)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerateRequest:
        """The request that :meth:`to_dict` described.

        Raises:
            RequestError: unknown names (with near ones), no prompt, or an image that is no longer what it was.
        """
        known = {field.name for field in fields(cls)}
        problems = unknown_names(values, known, "field")
        given = {name: value for name, value in values.items() if name in known}
        if "prompt" not in given:
            problems.append("prompt: missing")
        for name in ("image", "last_image"):
            given[name] = _recorded_image(name, given.get(name), problems)
        if problems:
            raise RequestError(*problems)
        return cls(**given)

    def resolve(self, card: Card, further: Further = lambda values: ()) -> ResolvedRequest:
        """This request with the model's defaults filled in, checked against the model.

        Args:
            further: rules of whoever knows more of the model than its card: from the fields' values, which may be wrong
                in any way, to problems as "field: what is wrong". Those of fields that are at fault anyway are dropped.

        Raises:
            RequestError: naming every bad field and the nearest legal values.
        """
        from glimt.check import check_request  # the rules live apart; they import this module's names

        return check_request(self, card, further)


def _recorded_image(name: str, value: Any, problems: list[str]) -> Any:
    try:
        return image_from_dict(value)
    except RequestError as error:
        problems.extend(f"{name}: {problem}" for problem in error.problems)
        return None


@dataclass(frozen=True)
class ResolvedRequest:
    """A legal request for one model: every field has its value. Fields as in :class:`GenerateRequest`.

    ``guidance_scale_2`` is ``None`` for a model with one transformer, ``shift`` where the solver has its own.
    """

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    seed: int
    solver: str
    shift: float | None
    image: ImageSource | None
    last_image: ImageSource | None
    num_videos_per_prompt: int
    preview_every: int
    preview: str
    decoder: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each variant."""
        return tuple(self.seed + i for i in range(self.num_videos_per_prompt))

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs at all (Diffusers' rule: the first scale is above 1)."""
        return self.guidance_scale > 1.0

    def pixel_grid(self) -> PixelGrid:
        return PixelGrid(self.num_frames, self.height, self.width)

    def latent_grid(self, card: Card) -> LatentGrid:
        return self.pixel_grid().latents(card.z_dim, card.scale_factor_temporal, card.scale_factor_spatial)

    def token_grid(self, card: Card) -> TokenGrid:
        return self.latent_grid(card).tokens(card.patch)

    def as_request(self) -> GenerateRequest:
        """The same as a :class:`GenerateRequest` with nothing left to the model."""
        return GenerateRequest(**{field.name: getattr(self, field.name) for field in fields(self)})

    def variant(self, index: int) -> ResolvedRequest:
        """The request that gives variant ``index`` alone."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ResolvedRequest(**{**values, "seed": self.seed + index, "num_videos_per_prompt": 1})

    def to_dict(self) -> dict[str, Any]:
        return self.as_request().to_dict()

"""The networks of an engine: loaded when first needed, kept, let go of when memory is short. Safe between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from glimt.models.image import ImageEncoder, load_processor
from glimt.models.taehv.model import TinyAutoencoder
from glimt.models.text import TextEncoder
from glimt.models.umt5 import Umt5Encoder
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.transformer import WanTransformer
from glimt.models.wan.vae import WanVae
from glimt.models.zoo import TEXT_TOKENS
from glimt.pipeline.condition import Picture
from glimt.plan import EXPERTS
from glimt.weights.components import check_values
from glimt.weights.folder import TINY, CheckpointFolder
from glimt_kernels.dispatch import Choice, note, recording

T = TypeVar("T")
EMBEDDINGS_BYTES = 64 * 2**20


class Embedded(NamedTuple):
    """Rows [L, text_dim] of a prompt, and the choices by which they were made: part of what makes every later video."""

    rows: Tensor
    choices: tuple[Choice, ...] = ()


class Embeddings:
    """Text embeddings of the prompts used last, without their padding, up to ``limit_bytes`` together.

    They belong to one engine and so to one text encoder: the prompt is key enough.
    """

    def __init__(self, limit_bytes: int = EMBEDDINGS_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, Embedded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> Embedded | None:
        """``None`` if it is not here."""
        with self._lock:
            if text in self._held:
                self._held.move_to_end(text)
            return self._held.get(text)

    def put(self, text: str, embedded: Embedded) -> None:
        with self._lock:
            self._held[text] = embedded
            while self.size_bytes() > self._limit_bytes and len(self._held) > 1:
                self._held.popitem(last=False)

    def size_bytes(self) -> int:
        return sum(embedded.rows.nbytes for embedded in self._held.values())

    def clear(self) -> None:
        with self._lock:
            self._held.clear()


class Components:
    """The components of one checkpoint on one device in one dtype."""

    def __init__(
        self,
        folder: CheckpointFolder,
        device: str,
        dtype: str,
        *,
        allow_pickle: bool = False,
        precision: str = "full",
        backend: str = "eager",
    ) -> None:
        self._folder, self._device, self._allow_pickle, self._precision = folder, device, allow_pickle, precision
        self._backend = backend
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._held: dict[str, Any] = {}
        self._sound: set[str] = set()  # components whose every value was looked at, as loading does
        self._locks = {name: threading.Lock() for name in folder.components}
        self._embeddings = Embeddings()

    def transformer(self, expert: int) -> WanTransformer:
        """The transformer, or of a model with two: 0 for high noise, 1 for low. Raises CheckpointError."""
        return self._get(EXPERTS[expert], lambda: cast(WanTransformer, self._load(EXPERTS[expert])))

    def vae(self) -> WanVae:
        """The VAE. Raises CheckpointError."""
        return self._get("vae", lambda: cast(WanVae, self._load("vae")))

    def tiny(self) -> TinyAutoencoder:
        """The tiny decoder. Raises CheckpointError."""
        return self._get(TINY, lambda: cast(TinyAutoencoder, self._load(TINY)))

    def digest(self, name: str) -> str:
        """SHA-256, in hex, of a component. Reads every byte once per process and file. Raises CheckpointError."""
        return self._folder.component(name).digest()

    def embed_texts(self, texts: tuple[str, ...]) -> Tensor:
        """[len(texts), L, text_dim] with zero rows after each prompt's own."""
        found = [self._embed(text) for text in texts]
        out = found[0].new_zeros(len(texts), TEXT_TOKENS, found[0].shape[1])
        for index, rows in enumerate(found):
            out[index, : len(rows)] = rows
        return out

    def embed_pictures(self, pictures: list[Picture]) -> Tensor | None:
        """CLIP tokens [len(pictures), Li, image_dim], or ``None`` where the transformer has no branch for them."""
        config = WanTransformerConfig.from_dict(self._folder.component("transformer").config)
        if config.image_dim is None:
            return None
        encoder = self._get("image_encoder", self._load_image_encoder)
        return encoder.encode(cast(list[Any], pictures))

    def preload(self, *names: str) -> None:
        """Load those of these networks that there are: transformers and autoencoders. Raises CheckpointError."""
        for name in names:
            if name in self._locks:
                self._get(name, partial(self._load, name))

    def check(self, name: str) -> None:
        """Read a component's weights once, unless this was done, and keep none. Raises CheckpointError."""
        component = self._folder.component(name)
        with self._locks[name]:
            if name not in self._sound:
                check_values(component, allow_pickle=self._allow_pickle)
                self._sound.add(name)

    def keep_only(self, *names: str) -> None:
        """Release all others."""
        self.release(*(name for name in self._locks if name not in names))

    def release(self, *names: str) -> None:
        """Keep these no longer; runs that use them still do."""
        for name in names:
            if name in self._locks:
                with self._locks[name]:
                    self._held.pop(name, None)

    def clear(self) -> None:
        self.release(*self._locks)
        self._embeddings.clear()

    def held_bytes(self, *names: str) -> int:
        """Weights in memory now, of these components or of all."""
        held = list(self._held.items())
        return sum(_weights_bytes(value) for name, value in held if not names or name in names)

    def _get(self, name: str, load: Callable[[], T]) -> T:
        self._folder.component(name)  # raises for one that is not there
        with self._locks[name]:
            if name not in self._held:
                self._held[name] = load()
            return cast(T, self._held[name])

    def _load(self, name: str) -> nn.Module:
        module = self._folder.load_component(
            name, self._device, self._dtype, allow_pickle=self._allow_pickle, precision=self._precision
        )
        self._sound.add(name)
        if self._backend == "inductor" and name in EXPERTS:
            from glimt.compile.backends.inductor import compile_blocks

            compile_blocks(cast(WanTransformer, module))
        return module

    def _load_text_encoder(self) -> TextEncoder:
        return TextEncoder(cast(Umt5Encoder, self._load("text_encoder")), self._folder.tokenizer)

    def _load_image_encoder(self) -> ImageEncoder:
        processor = load_processor(self._folder.component("image_processor").path)
        return ImageEncoder(self._load("image_encoder"), processor)

    def _embed(self, text: str) -> Tensor:
        found = self._embeddings.get(text)
        if found is None:
            encoder = self._get("text_encoder", self._load_text_encoder)
            with recording() as made:
                encoded = encoder.encode(text)
            found = Embedded(encoded.embeds[0, : encoded.tokens.kept].clone(), tuple(made.values()))
            self._embeddings.put(text, found)
        note(*found.choices)
        return found.rows


def _weights_bytes(component: Any) -> int:
    module = component if isinstance(component, nn.Module) else component.model
    return sum(parameter.nbytes for parameter in module.parameters())

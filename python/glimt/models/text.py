"""From a prompt to the text embeddings of a Wan model: clean, tokenize, encode, pad.

What Diffusers' Wan pipelines do, in the same order: repair the text (ftfy, HTML entities, white space), tokenize to at
most ``max_tokens`` ids with a final end mark, encode, and fill up with zero rows to ``max_tokens``. A prompt is never
cut in silence: :class:`TokenizedPrompt` says how many tokens were dropped and which words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimt.errors import CheckpointError, MissingDependencyError
from glimt.models.umt5 import Umt5Encoder


def clean_prompt(prompt: str) -> str:
    """Mended Unicode, resolved HTML entities, single spaces; as Diffusers' ``prompt_clean`` with ftfy installed."""
    if prompt.isascii() and prompt.isprintable() and "&" not in prompt:
        return " ".join(prompt.split())  # nothing to mend: spares the imports below
    import html

    try:
        import ftfy
        import regex
    except ImportError as error:
        package = str(error.name or "ftfy")
        raise MissingDependencyError(package, "clean prompts that are not plain ASCII") from error
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return str(regex.sub(r"\s+", " ", mended)).strip()


@dataclass(frozen=True)
class TokenizedPrompt:
    """``ids`` of the cleaned ``text``, end mark included; ``dropped`` tokens beyond the limit were ``dropped_text``."""

    text: str
    ids: tuple[int, ...]
    dropped: int = 0
    dropped_text: str = ""

    @property
    def kept(self) -> int:
        """Number of ids, the end mark included."""
        return len(self.ids)

    @property
    def note(self) -> str:
        """What to tell about a prompt that is cut; "" if it is not."""
        if not self.dropped:
            return ""
        shown = self.dropped_text if len(self.dropped_text) <= 60 else self.dropped_text[:57] + "..."
        return f"cut to {self.kept} tokens: the last {self.dropped} are dropped ({shown!r})"


class PromptTokenizer:
    """A fast tokenizer, from the ``tokenizer.json`` in ``folder``.

    Raises CheckpointError if the file is missing or is no tokenizer.
    """

    def __init__(self, folder: Path, max_tokens: int = 512) -> None:
        self._tokenizer = _open_tokenizer(folder / "tokenizer.json")
        self.max_tokens = max_tokens

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Clean and tokenize, cut to ``max_tokens`` with the end mark kept."""
        text = clean_prompt(prompt)
        encoding = self._tokenizer.encode(text)
        ids, limit = encoding.ids, self.max_tokens
        if len(ids) <= limit:
            return TokenizedPrompt(text, tuple(ids))
        marks = _trailing_marks(encoding.special_tokens_mask)
        keep = limit - marks
        start = encoding.offsets[keep][0]
        return TokenizedPrompt(text, (*ids[:keep], *ids[len(ids) - marks :]), len(ids) - limit, text[start:].strip())


def _open_tokenizer(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a fast tokenizer in one file is needed; save the tokenizer anew with"
                              " a recent version of transformers")  # fmt: skip
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for anything it cannot parse
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _trailing_marks(special: list[int]) -> int:
    count = 0
    while count < len(special) and special[-1 - count]:
        count += 1
    return count


@dataclass(frozen=True)
class EncodedPrompt:
    """``embeds [1, max_tokens, text_dim]``, zero rows after the ``tokens.kept`` of the prompt. Do not write to it."""

    tokens: TokenizedPrompt
    embeds: Tensor


class TextEncoder:
    """Prompts to embeddings. Safe to call from threads."""

    def __init__(self, model: Umt5Encoder, tokenizer: PromptTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, prompt: str) -> EncodedPrompt:
        """Embeddings of ``prompt`` (which may be empty), in the model's dtype and on its device."""
        tokens = self.tokenizer(prompt)
        rows = self.model(torch.tensor([tokens.ids], device=self.model.shared.weight.device))[0]
        embeds = rows.new_zeros(1, self.tokenizer.max_tokens, rows.shape[1])
        embeds[0, : len(rows)] = rows
        return EncodedPrompt(tokens, embeds)

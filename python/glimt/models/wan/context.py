"""What a Wan transformer needs besides latents, as values computed once per request.

B is the batch, N the video tokens in order t, y, x, L the text tokens, D the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoldedText:
    """Text embeddings with their zero padding folded: ``tokens [B, L', text_dim]``, ``bias [B, L']`` added to logits.

    ``m`` identical padded keys weigh in a softmax as one key whose logit is raised by ``log m``: exact algebra.
    """

    tokens: Tensor
    bias: Tensor


def fold_padding(text: Tensor) -> FoldedText:
    """Fold the all-zero trailing rows of ``text [B, L, text_dim]`` into as few keys as the longest prompt allows."""
    length = text.shape[1]
    position = torch.arange(1, length + 1, device=text.device)
    kept = ((text != 0).any(-1) * position).amax(1)
    keep = min(length, int(kept.max()) + 1)
    padded = position[None, :keep] > kept[:, None]
    weight = torch.log((length - kept).clamp(min=1) / (keep - kept).clamp(min=1))
    return FoldedText(text[:, :keep].contiguous(), torch.where(padded, weight[:, None], 0.0).float())


@dataclass(frozen=True)
class CrossContext:
    """Keys and values ``[B, L, heads, head_dim]`` of one cross-attention, and of its CLIP image branch if it has one.

    ``bias [B, L]`` is added to the logits of the text keys.
    """

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    k_image: Tensor | None = None
    v_image: Tensor | None = None


@dataclass(frozen=True)
class TextContext:
    """All that a forward needs of the prompt: one :class:`CrossContext` per block."""

    layers: tuple[CrossContext, ...]


@dataclass(frozen=True)
class Modulation:
    """Time embedding ``temb [B, G, D]`` and its six-fold projection ``proj [B, G, 6, D]``.

    ``tables [layers, 6, D]`` float32 is what the blocks add to ``proj``, where it was gathered beforehand.
    G groups of N / G consecutive tokens share a timestep: 1 (one for all), f (one per latent frame) or N (one per
    token).
    """

    temb: Tensor
    proj: Tensor
    tables: Tensor | None = None


@dataclass(frozen=True)
class TimeContext:
    """The timestep MLP of a whole schedule: ``temb [S, D]``, ``proj [S, 6, D]``; ``tables`` as in a Modulation."""

    temb: Tensor
    proj: Tensor
    tables: Tensor | None = None

    def at(self, index: Tensor) -> Modulation:
        """Rows ``index [B, G]`` (integers into the schedule) as a Modulation."""
        return Modulation(self.temb[index], self.proj[index], self.tables)

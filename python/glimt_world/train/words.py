"""Teach the text encoder to read before anything is drawn: from every token of a caption, all that the caption states.

The transformer learns slowly which adjective belongs to which noun, since a wrong colour costs little of its loss;
reading captions costs a few minutes and learns exactly that. Afterwards every token's embedding tells each attribute
to a linear map, so that attention need not search, and the encoder stays as it is while the transformer trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from glimt_world.captions import Caption, caption
from glimt_world.scene import CAMERAS, FLOOR_COLOURS, MOTIONS, OBJECT_COLOURS, SHAPES, SKY_COLOURS
from glimt_world.train.data import scenes
from glimt_world.train.forms import TEXT_WIDTH
from glimt_world.train.muon import Muon, split_parameters
from glimt_world.train.run import learning_rate, set_rate
from glimt_world.train.text import embed, new_encoder

# What each question about a caption may be answered with, besides "not stated".
ANSWERS: tuple[tuple[str, ...], ...] = (
    tuple(FLOOR_COLOURS),
    tuple(SKY_COLOURS),
    CAMERAS,
    *2 * (tuple(OBJECT_COLOURS), SHAPES, MOTIONS),
)
LONGEST = 52  # no caption has more tokens
STEPS, BATCH = 800, 256  # 99.9 % of all answers right; after 400, left and right are still taken for each other
POOL = 6000  # scenes; every step says some of them in new words


def answers(made: Caption) -> list[int]:
    """The right answer to each question, 0 where the caption says nothing."""
    stated: list[str | None] = [made.floor, made.sky, made.camera]
    for thing in made.things:
        stated += [thing.colour, thing.shape, thing.motion]
    stated += [None] * (len(ANSWERS) - len(stated))
    return [0 if word is None else 1 + words.index(word) for word, words in zip(stated, ANSWERS, strict=True)]


class Reader(nn.Module):
    """The encoder and a linear map from each token's embedding to the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = new_encoder()
        self.head = nn.Linear(TEXT_WIDTH, sum(1 + len(words) for words in ANSWERS))

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, L, answers]`` of each question."""
        logits: Tensor = self.head(embed(self.encoder, ids, mask))
        return torch.split(logits, [1 + len(words) for words in ANSWERS], dim=-1)

    def loss(self, ids: Tensor, mask: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy over tokens and questions, share of answers right); ``right [B, questions]``."""
        losses, hits = [], []
        for logits, answer in zip(self(ids, mask), right.unbind(1), strict=True):
            kept = answer[:, None].expand_as(mask)[mask.bool()]
            chosen = logits.float()[mask.bool()]
            losses.append(F.cross_entropy(chosen, kept))
            hits.append((chosen.argmax(-1) == kept).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean()


def learn_to_read(folder: Path, *, peak: float = 0.01) -> Any:
    """The encoder of a run in ``folder``, trained with its tokenizer and kept there as ``words.safetensors``."""
    path = folder / "words.safetensors"
    encoder = new_encoder()
    if path.exists():
        encoder.load_state_dict(load_file(path))
        return encoder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(2)
    reader = Reader().to(device)
    matrices, others = split_parameters(reader.encoder)
    muon = Muon(matrices, lr=peak)
    adam = torch.optim.AdamW([*others, *reader.head.parameters()], lr=0.3 * peak, betas=(0.9, 0.98), weight_decay=0.0)
    said = _captions(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))
    for step in range(STEPS):
        rate = learning_rate(step / STEPS, peak)
        set_rate(muon, rate)
        set_rate(adam, 0.3 * rate)
        with torch.autocast(device, torch.bfloat16):
            loss, hits = reader.loss(*(tensor.to(device) for tensor in next(said)))
        reader.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        muon.step()
        adam.step()
        if step % 20 == 0 or step == STEPS - 1:
            line = {"words_step": step, "words_loss": round(loss.item(), 4), "words_right": round(hits.item(), 4)}
            print(json.dumps(line), flush=True)
    # One table under two names, of which safetensors keeps what it is given: both, as copies.
    save_file({k: v.detach().cpu().clone() for k, v in reader.encoder.state_dict().items()}, path)
    return reader.encoder.cpu()


def _captions(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches for ever: ids and mask [BATCH, LONGEST], right answers [BATCH, questions]."""
    source, rng = scenes(5), np.random.default_rng(5)
    known = [next(source) for _ in range(POOL)]
    while True:
        made = [caption(known[i], rng) for i in rng.integers(len(known), size=BATCH)]
        texts = [one.text for one in made]
        out = tokenizer(texts, padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt")
        yield out.input_ids, out.attention_mask, torch.tensor([answers(one) for one in made])

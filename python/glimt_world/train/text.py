"""The little world's tokenizer and text encoder: a small UMT5, trained together with the transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimt_world.captions import caption
from glimt_world.train.data import scenes
from glimt_world.train.forms import TEXT_WIDTH

VOCABULARY = 512
MAX_TOKENS = 512  # what Wan pipelines pad a prompt to


def write_tokenizer(folder: Path, *, captions: int = 20_000) -> None:
    """Learn a byte-pair vocabulary from captions and write it as a fast tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng, source = np.random.default_rng(0), scenes(0)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-", "\u2581"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], initial_alphabet=letters
    )
    tokenizer.train_from_iterator((caption(next(source), rng).text for _ in range(captions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_TOKENS
    ).save_pretrained(folder)
    # The class that every version of transformers knows; newer ones write a name that older ones do not.
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values.pop("backend", None)
    path.write_text(json.dumps({**values, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def new_encoder() -> Any:
    """A small UMT5 encoder with fresh weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=VOCABULARY,
            d_model=TEXT_WIDTH,
            d_kv=48,
            d_ff=384,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def embed(encoder: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, L, d_model], zero at padded places as Wan pipelines make them."""
    hidden: torch.Tensor = encoder(ids, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None]

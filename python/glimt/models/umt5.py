"""The UMT5 encoder, which turns a prompt's token ids into the embeddings Wan reads.

    x = embedding(ids);  per layer: x += attention(rms(x));  x += wo(gelu(wi_0(rms(x))) * wi_1(rms(x)));  out = rms(x)

Attention has no scale and a learned bias per head and bucket of relative position, its own in every layer. Parameter
names are those of transformers' ``UMT5EncoderModel``; one definition here rather than theirs because importing
transformers takes seconds and 230 MB, more than the bundled model needs for a whole clip. Runs a prompt unpadded, which
gives every token what it gets in a padded batch, where padding is masked.
Source: "UniMax: Fairer and more Effective Language Sampling" (arXiv:2304.09151); T5 (arXiv:1910.10683).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.errors import CheckpointError
from glimt.models.linear import Linear


@dataclass(frozen=True)
class Umt5Config:
    """Shape of a UMT5 encoder, named as in transformers' ``UMT5Config``; the defaults are those of umt5-xxl."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Umt5Config:
        """Read ``text_encoder/config.json``, of which an encoder uses few keys.

        Raises CheckpointError naming every value that is missing or impossible.
        """
        problems = []
        act = values.get("feed_forward_proj", "gated-gelu")
        if act != "gated-gelu":
            problems.append(f"feed_forward_proj must be 'gated-gelu', found {act!r}")
        given: dict[str, Any] = {}
        for field in fields(cls):
            value: Any = values.get(field.name)
            given[field.name] = value
            number = isinstance(value, (int, float)) if field.type == "float" else isinstance(value, int)
            if not number or isinstance(value, bool) or not value > 0:
                problems.append(f"{field.name} must be a positive number, found {value!r}")
        if (
            not problems
            and not 1 <= given["relative_attention_num_buckets"] // 4 < given["relative_attention_max_distance"]
        ):
            problems.append(
                "relative_attention_num_buckets must be 4 or more, and a quarter of it below the max distance"
            )
        if problems:
            raise CheckpointError(*(f"UMT5 config: {problem}" for problem in problems))
        return cls(**given)


def position_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Bucket ``[length, length]`` of (query, key): exact for near keys, logarithmic to ``max_distance``; keys after the
    query have the upper half."""
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]
    half, distance = buckets // 2, offset.abs()
    exact = half // 2
    ratio = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).clamp(min=0).long()).clamp(max=half - 1)
    return (offset > 0).long() * half + torch.where(distance < exact, distance, far)


class RmsScale(nn.Module):
    """``x / sqrt(mean(x**2) + eps)`` in float32, rounded to the dtype of ``weight``, times ``weight``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(self.weight.dtype) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.config = config
        inner = config.num_heads * config.d_kv
        self.q = Linear(config.d_model, inner, bias=False)
        self.k = Linear(config.d_model, inner, bias=False)
        self.v = Linear(config.d_model, inner, bias=False)
        self.o = Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        shape = (*x.shape[:2], self.config.num_heads, self.config.d_kv)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        bias = self.relative_attention_bias(buckets).permute(2, 0, 1)[None].to(q.dtype)
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None, :], -torch.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wi_0(x, gelu="tanh") * self.wi_1(x)
        return self.wo(hidden.to(self.wo.weight.dtype))


class AttentionLayer(nn.Module):
    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = RmsScale(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), buckets, padding)


class MlpLayer(nn.Module):
    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedMlp(config)
        self.layer_norm = RmsScale(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class EncoderBlock(nn.Module):
    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), MlpLayer(config)])

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        return self.layer[1](self.layer[0](x, buckets, padding))


class EncoderStack(nn.Module):
    def __init__(self, config: Umt5Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.block = nn.ModuleList([EncoderBlock(config) for _ in range(config.num_layers)])
        self.final_layer_norm = RmsScale(config.d_model, config.layer_norm_epsilon)


class Umt5Encoder(nn.Module):
    """Token ids to embeddings. See the module's text."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = EncoderStack(config, self.shared)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``ids [B, L]`` -> ``[B, L, d_model]``. ``attention_mask [B, L]``: 0 where ids are padding; ``None``: nowhere.

        Rows at padded places have no meaning.
        """
        config = self.config
        buckets = position_buckets(
            ids.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
        ).to(ids.device)
        padding = None if attention_mask is None else attention_mask == 0
        x = self.shared(ids)
        for block in cast(Iterable[EncoderBlock], self.encoder.block):
            x = block(x, buckets, padding)
        return self.encoder.final_layer_norm(x)

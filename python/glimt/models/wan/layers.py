"""The small layers of the Wan transformer: norms, MLPs, and the embedders of time, text and image."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.models.eight_bit import EightBitLinear, Rows
from glimt.models.linear import Linear, fuses
from glimt.models.wan.config import WanTransformerConfig
from glimt_kernels import layer_norm, rms_norm


class RmsNorm(nn.Module):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis, in float32, returned in the dtype of ``x``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if fuses(x):
            return rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class Fp32LayerNorm(nn.LayerNorm):
    """LayerNorm in float32 whatever the dtype of ``x``, which the result has again."""

    def forward(self, x: Tensor) -> Tensor:
        if fuses(x) and self.weight is not None and self.bias is not None:
            return layer_norm(x, self.weight, self.bias, self.eps)
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class _Projection(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj: Linear | EightBitLinear = Linear(width, hidden)


class Mlp(nn.Module):
    """``residual + gate * linear(gelu(linear(x)))``, the first two where given; ``approximate``: see ``F.gelu``."""

    def __init__(self, width: int, hidden: int, out: int, approximate: str) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Projection(width, hidden), nn.Identity(), Linear(hidden, out)])
        self.approximate = approximate

    def quantize(self, kind: str) -> None:
        """Both products in eight bits from now on."""
        first, last = self.net[0], self.net[2]
        assert isinstance(first, _Projection) and isinstance(last, Linear)
        first.proj = EightBitLinear(cast(Linear, first.proj), kind=kind)
        self.net[2] = EightBitLinear(last, kind=kind)

    def forward(self, x: Tensor | Rows, *, gate: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        first, last = self.net[0], self.net[2]
        assert isinstance(first, _Projection)
        inner: Tensor = first.proj(x, gelu=self.approximate)
        out: Tensor = last(inner, gate=gate, residual=residual)
        return out


class TwoLinears(nn.Module):
    """``linear_2(act(linear_1(x)))``, the form of the time and text embedders."""

    def __init__(self, width: int, out: int, act: nn.Module) -> None:
        super().__init__()
        self.linear_1 = Linear(width, out)
        self.act = act
        self.linear_2 = Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class ImageEmbedder(nn.Module):
    """CLIP image tokens to the width of the transformer (Wan 2.1 I2V; FLF2V adds ``pos_embed`` over both images)."""

    def __init__(self, image_dim: int, width: int, pos_embed_seq_len: int | None) -> None:
        super().__init__()
        self.norm1 = Fp32LayerNorm(image_dim)
        self.ff = Mlp(image_dim, image_dim, width, approximate="none")
        self.norm2 = Fp32LayerNorm(width)
        self.pos_embed: nn.Parameter | None = None
        if pos_embed_seq_len is not None:
            self.pos_embed = nn.Parameter(torch.zeros(1, pos_embed_seq_len, image_dim))

    def forward(self, image: Tensor) -> Tensor:
        if self.pos_embed is not None:
            # First and last image come stacked along the batch: two rows become one sequence.
            image = image.reshape(-1, 2 * image.shape[1], image.shape[2]) + self.pos_embed
        return self.norm2(self.ff(self.norm1(image)))


class ConditionEmbedder(nn.Module):
    """Timesteps, text and image tokens to the width of the transformer."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLinears(config.freq_dim, width, nn.SiLU())
        self.time_proj = Linear(width, 6 * width)
        self.text_embedder = TwoLinears(config.text_dim, width, nn.GELU(approximate="tanh"))
        self.image_embedder: ImageEmbedder | None = None
        if config.image_dim is not None:
            self.image_embedder = ImageEmbedder(config.image_dim, width, config.pos_embed_seq_len)

    def time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``timesteps [...]`` -> ``temb [..., D]``, ``proj [..., 6, D]``."""
        waves = sinusoids(timesteps, self.freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        temb = self.time_embedder(waves).to(self.time_proj.weight.dtype)
        proj = self.time_proj(F.silu(temb))
        return temb, proj.view(*timesteps.shape, 6, -1)


def sinusoids(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """``[cos(t w_j), sin(t w_j)]`` with ``w_j = max_period ** (-j / (dim / 2))``: ``[...] -> [..., dim]`` float32."""
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[..., None] * exponent.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)

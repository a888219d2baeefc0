"""The Wan diffusion transformer, 2.1 and 2.2, as one definition.

    latents [B, C, f, h, w] -> patches -> tokens [B, N, D] -> blocks -> velocity [B, C_out, f, h, w]
    block:  x += gate1 * self_attention(modulate(norm(x)));  x += cross_attention(norm(x));  x += gate2 * mlp(modulate(norm(x)))

Parameter names are those of Diffusers' ``WanTransformer3DModel``. What depends only on the prompt, the schedule or the grid is
computed once per request: :meth:`WanTransformer.prepare_text`, :meth:`WanTransformer.prepare_time` and
:func:`glimt.models.wan.rope.rope_tables`; ``forward`` takes either those or the raw tensors. Differentiable throughout.
Source: "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314), section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.rope import RopeTables, rope_tables, rotate

# Parameters that stay float32 when the rest is bfloat16 or float16: any whose dotted name has one of these components.
# (Diffusers' `_keep_in_fp32_modules`, so that half-precision runs of both are comparable.)
KEEP_IN_FP32 = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})


def keeps_fp32(name: str) -> bool:
    """Whether the parameter called ``name`` stays float32 under a half-precision dtype policy."""
    return not KEEP_IN_FP32.isdisjoint(name.split("."))


@dataclass(frozen=True)
class FoldedText:
    """Text embeddings with their zero padding folded: ``tokens [B, L', text_dim]``, ``bias [B, L']`` added to the logits.

    ``m`` identical padded keys weigh in a softmax as one key whose logit is raised by ``log m``: exact algebra.
    """

    tokens: Tensor
    bias: Tensor


@dataclass(frozen=True)
class CrossContext:
    """Keys and values ``[B, L, heads, head_dim]`` of one cross-attention, and of its CLIP image branch if it has one."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    k_image: Tensor | None = None
    v_image: Tensor | None = None


@dataclass(frozen=True)
class TextContext:
    """All that a forward needs of the prompt: one :class:`CrossContext` per block. Once per request."""

    layers: tuple[CrossContext, ...]


@dataclass(frozen=True)
class Modulation:
    """Time embedding ``temb [B, G, D]`` and its six-fold projection ``proj [B, G, 6, D]``.

    G groups of N / G consecutive tokens share a timestep: 1 (one for all), f (one per latent frame) or N (one per token).
    """

    temb: Tensor
    proj: Tensor


@dataclass(frozen=True)
class TimeContext:
    """The timestep MLP of a whole schedule: ``temb [S, D]``, ``proj [S, 6, D]``. Once per request."""

    temb: Tensor
    proj: Tensor

    def at(self, index: Tensor) -> Modulation:
        """Rows ``index [B, G]`` (integers into the schedule) as a Modulation."""
        return Modulation(self.temb[index], self.proj[index])


def fold_padding(text: Tensor) -> FoldedText:
    """Fold the all-zero trailing rows of ``text [B, L, text_dim]`` into as few keys as the longest prompt allows."""
    length = text.shape[1]
    position = torch.arange(1, length + 1, device=text.device)
    kept = ((text != 0).any(-1) * position).amax(1)
    keep = min(length, int(kept.max()) + 1)
    padded = position[None, :keep] > kept[:, None]
    weight = torch.log((length - kept).clamp(min=1) / (keep - kept).clamp(min=1))
    return FoldedText(text[:, :keep].contiguous(), torch.where(padded, weight[:, None], 0.0).float())


class RmsNorm(nn.Module):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis, in float32, returned in the dtype of ``x``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class Fp32LayerNorm(nn.LayerNorm):
    """LayerNorm in float32 whatever the dtype of ``x``, which the result has again."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class _Projection(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class Mlp(nn.Module):
    """``linear(gelu(linear(x)))``; ``approximate`` is that of ``F.gelu``."""

    def __init__(self, width: int, hidden: int, out: int, approximate: str) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Projection(width, hidden), nn.Identity(), nn.Linear(hidden, out)])
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.net[0], self.net[2]
        assert isinstance(first, _Projection)
        return last(F.gelu(first.proj(x), approximate=self.approximate))  # type: ignore[no-any-return]


class TwoLinears(nn.Module):
    """``linear_2(act(linear_1(x)))``, the form of the time and text embedders."""

    def __init__(self, width: int, out: int, act: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.act = act
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))  # type: ignore[no-any-return]


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
        return self.norm2(self.ff(self.norm1(image)))  # type: ignore[no-any-return]


class ConditionEmbedder(nn.Module):
    """Timesteps, text and image tokens to the width of the transformer."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLinears(config.freq_dim, width, nn.SiLU())
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = TwoLinears(config.text_dim, width, nn.GELU(approximate="tanh"))
        self.image_embedder: ImageEmbedder | None = None
        if config.image_dim is not None:
            self.image_embedder = ImageEmbedder(config.image_dim, width, config.pos_embed_seq_len)

    def time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """``timesteps [...]`` -> ``temb [..., D]``, ``proj [..., 6, D]``."""
        waves = sinusoids(timesteps, self.freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        temb = self.time_embedder(waves).to(self.time_proj.weight.dtype)
        return temb, self.time_proj(F.silu(temb)).unflatten(-1, (6, -1))


def sinusoids(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """``[cos(t w_j), sin(t w_j)]`` with ``w_j = max_period ** (-j / (dim / 2))``: ``[...] -> [..., dim]`` float32."""
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[..., None] * exponent.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys (over the full width, all heads together)."""

    def __init__(self, config: WanTransformerConfig, *, image_dim: int | None = None) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.norm_q = RmsNorm(width, config.eps)
        self.norm_k = RmsNorm(width, config.eps)
        self.has_image_branch = image_dim is not None
        if image_dim is not None:
            self.add_k_proj = nn.Linear(image_dim, width)
            self.add_v_proj = nn.Linear(image_dim, width)
            self.norm_added_k = RmsNorm(width, config.eps)

    def split(self, x: Tensor) -> Tensor:
        """``[B, N, D] -> [B, N, heads, head_dim]``."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    """Attention among the video tokens, with rotary positions."""

    def forward(self, x: Tensor, rope: RopeTables) -> Tensor:
        q = rotate(self.split(self.norm_q(self.to_q(x))), rope)
        k = rotate(self.split(self.norm_k(self.to_k(x))), rope)
        return self.to_out[0](attend(q, k, self.split(self.to_v(x))))  # type: ignore[no-any-return]


class CrossAttention(Attention):
    """Attention from the video tokens to the text and, in Wan 2.1 I2V and FLF2V, beside it to the image tokens."""

    def context(self, text: Tensor, bias: Tensor | None, image: Tensor | None) -> CrossContext:
        """Keys and values of ``text [B, L, D]`` and ``image [B, Li, D]``."""
        k, v = self.split(self.norm_k(self.to_k(text))), self.split(self.to_v(text))
        if not self.has_image_branch or image is None:
            return CrossContext(k, v, bias)
        k_image = self.split(self.norm_added_k(self.add_k_proj(image)))
        return CrossContext(k, v, bias, k_image, self.split(self.add_v_proj(image)))

    def forward(self, x: Tensor, context: CrossContext) -> Tensor:
        q = self.split(self.norm_q(self.to_q(x)))
        out = attend(q, context.k, context.v, context.bias)
        if context.k_image is not None and context.v_image is not None:
            out = out + attend(q, context.k_image, context.v_image)
        return self.to_out[0](out)  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(head_dim) + bias) v``: ``[B, N, heads, head_dim]``, ``bias [B, L]`` per key -> ``[B, N, D]``."""
    mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
    q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with ``x [B, N, D]`` and per-group ``shift, scale [B, G, D]``."""
    groups = x.unflatten(1, (scale.shape[1], -1))
    return torch.addcmul(shift[:, :, None], groups, 1 + scale[:, :, None]).flatten(1, 2)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``x + y * gate`` in float32, with ``x, y [B, N, D]`` and per-group ``gate [B, G, D]``; in the dtype of ``x``."""
    groups = gate.shape[1]
    out = torch.addcmul(x.float().unflatten(1, (groups, -1)), y.float().unflatten(1, (groups, -1)), gate[:, :, None])
    return out.flatten(1, 2).to(x.dtype)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, the first and last modulated by the timestep."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = Fp32LayerNorm(width, config.eps, elementwise_affine=False)
        self.attn1 = SelfAttention(config)
        self.attn2 = CrossAttention(config, image_dim=config.added_kv_proj_dim)
        self.norm2 = Fp32LayerNorm(width, config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = Mlp(width, config.ffn_dim, width, approximate="tanh")
        self.norm3 = Fp32LayerNorm(width, config.eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x: Tensor, context: CrossContext, proj: Tensor, rope: RopeTables) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table[None] + proj.float()).unbind(2)
        x = gated_add(x, self.attn1(modulate(self.norm1(x.float()), shift1, scale1).to(x.dtype), rope), gate1)
        x = x + self.attn2(self.norm2(x), context)
        return gated_add(x, self.ffn(modulate(self.norm3(x.float()), shift2, scale2).to(x.dtype)), gate2)


class WanTransformer(nn.Module):
    """Velocity of the flow at ``latents``, given a timestep and a prompt. See the module's text."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = Fp32LayerNorm(width, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Token grid (t, y, x) of ``latents [B, C, f, h, w]``."""
        pt, ph, pw = self.config.patch_size
        f, h, w = latents.shape[2:]
        return f // pt, h // ph, w // pw

    def prepare_text(self, text: Tensor | FoldedText, image: Tensor | None = None) -> TextContext:
        """Keys and values of every cross-attention.

        ``text [B, L, text_dim]`` (zero-padded as the text encoder gives it, or folded), ``image [B, Li, image_dim]`` CLIP
        tokens (first-last-frame models: ``[2 B, Li, image_dim]``, first and last interleaved).
        """
        tokens, bias, image = self._project(text, image)
        return TextContext(tuple(block.attn2.context(tokens, bias, image) for block in self.blocks))

    def prepare_time(self, timesteps: Tensor) -> TimeContext:
        """The timestep MLP of every value in ``timesteps [S]``."""
        return TimeContext(*self.condition_embedder.time(timesteps))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | Modulation,
        text: Tensor | FoldedText | TextContext,
        image: Tensor | None = None,
        *,
        rope: RopeTables | None = None,
    ) -> Tensor:
        """``latents [B, in_channels, f, h, w]`` -> velocity ``[B, out_channels, f, h, w]`` in the model's dtype.

        ``timestep``: ``[B]``, ``[B, f]`` (one per latent frame), ``[B, N]`` (one per token), or a prepared Modulation.
        ``text`` and ``image``: as for :meth:`prepare_text`, or what it returned.
        """
        grid = self.grid(latents)
        rope = rope or rope_tables(self.config.attention_head_dim, grid).to(latents.device)
        time = timestep if isinstance(timestep, Modulation) else self._modulation(timestep)
        x = self._patchify(latents)
        if isinstance(text, TextContext):
            for block, layer in zip(self.blocks, text.layers, strict=True):
                x = block(x, layer, time.proj, rope)
        else:
            tokens, bias, image = self._project(text, image)
            for block in self.blocks:
                x = block(x, block.attn2.context(tokens, bias, image), time.proj, rope)
        shift, scale = (self.scale_shift_table[None] + time.temb[:, :, None].float()).unbind(2)
        x = modulate(self.norm_out(x.float()), shift, scale).to(x.dtype)
        return self._unpatchify(self.proj_out(x), grid)

    def _modulation(self, timestep: Tensor) -> Modulation:
        return Modulation(*self.condition_embedder.time(timestep if timestep.ndim == 2 else timestep[:, None]))

    def _project(self, text: Tensor | FoldedText, image: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        folded = text if isinstance(text, FoldedText) else None
        tokens = folded.tokens if folded is not None else text
        assert isinstance(tokens, Tensor)
        embedder = self.condition_embedder
        dtype = embedder.text_embedder.linear_1.weight.dtype
        if image is not None and embedder.image_embedder is not None:
            image = embedder.image_embedder(image.to(dtype))
        return embedder.text_embedder(tokens.to(dtype)), None if folded is None else folded.bias, image

    def _patchify(self, latents: Tensor) -> Tensor:
        """A convolution whose stride is its kernel is one matrix product over patches: ``[B, N, D]``."""
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        batch, channels = latents.shape[:2]
        (t, y, x), (pt, ph, pw) = self.grid(latents), self.config.patch_size
        patches = latents.to(weight.dtype).reshape(batch, channels, t, pt, y, ph, x, pw)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * y * x, -1)
        return F.linear(patches, weight.flatten(1), bias).to(weight.dtype)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        (t, y, x), (pt, ph, pw) = grid, self.config.patch_size
        out = tokens.reshape(-1, t, y, x, pt, ph, pw, self.config.out_channels)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.config.out_channels, t * pt, y * ph, x * pw)

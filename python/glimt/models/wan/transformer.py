"""The Wan diffusion transformer, 2.1 and 2.2, as one definition.

    latents [B, C, f, h, w] -> patches -> tokens [B, N, D] -> blocks -> velocity [B, C_out, f, h, w]
    block:  x += gate1 * self_attention(modulate1(norm1(x)))
            x += cross_attention(norm2(x), text)
            x += gate2 * mlp(modulate2(norm3(x)))

Parameter names are those of Diffusers' ``WanTransformer3DModel``. What depends only on the prompt, the schedule or the
grid is computed once per request: :meth:`WanTransformer.prepare_text`, :meth:`WanTransformer.prepare_time` and
:func:`glimt.models.wan.rope.rope_tables`; ``forward`` takes either those or the raw tensors. Differentiable throughout.
Source: "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314), section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.models.linear import Linear, linear
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.context import CrossContext, FoldedText, Modulation, TextContext, TimeContext, fold_padding
from glimt.models.wan.layers import ConditionEmbedder, Fp32LayerNorm, Mlp, RmsNorm
from glimt.models.wan.rope import RopeTables, rope_tables, rotate
from glimt_kernels import Case, ada_norm, qk_norm_rope, wants_references

__all__ = [
    "KEEP_IN_FP32",
    "CrossContext",
    "FoldedText",
    "Modulation",
    "TextContext",
    "TimeContext",
    "WanTransformer",
    "fold_padding",
    "keeps_fp32",
    "kernels_used",
]

# Parameters that stay float32 when the rest is bfloat16 or float16: any whose dotted name has one of these components.
# (Diffusers' `_keep_in_fp32_modules`, so that half-precision runs of both are comparable.)
KEEP_IN_FP32 = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})


def keeps_fp32(name: str) -> bool:
    """Whether the parameter called ``name`` stays float32 under a half-precision dtype policy."""
    return not KEEP_IN_FP32.isdisjoint(name.split("."))


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys (over the full width, all heads together)."""

    def __init__(self, config: WanTransformerConfig, *, image_dim: int | None = None) -> None:
        super().__init__()
        width = config.width
        self.head_shape = (config.num_attention_heads, config.attention_head_dim)
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width), nn.Identity()])
        self.norm_q = RmsNorm(width, config.eps)
        self.norm_k = RmsNorm(width, config.eps)
        self.has_image_branch = image_dim is not None
        if image_dim is not None:
            self.add_k_proj = Linear(image_dim, width)
            self.add_v_proj = Linear(image_dim, width)
            self.norm_added_k = RmsNorm(width, config.eps)

    def split(self, x: Tensor) -> Tensor:
        """``[B, N, D] -> [B, N, heads, head_dim]``."""
        return x.view(*x.shape[:2], *self.head_shape)


class SelfAttention(Attention):
    """Attention among the video tokens, with rotary positions."""

    def forward(self, x: Tensor, rope: RopeTables) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.to_q, self.to_k, self.to_v))
        if fuses(x):
            weights = self.norm_q.weight, self.norm_k.weight
            q, k = qk_norm_rope(q, k, *weights, rope.cos, rope.sin, self.norm_q.eps)
        else:
            q = rotate(self.split(self.norm_q(q.flatten(2))), rope)
            k = rotate(self.split(self.norm_k(k.flatten(2))), rope)
        return self.to_out[0](attend(q, k, v))


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
        return self.to_out[0](out)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(head_dim) + bias) v``.

    ``q [B, N, heads, head_dim]``, ``k`` and ``v [B, L, heads, head_dim]``, ``bias [B, L]`` per key -> ``[B, N, D]``.
    """
    mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
    q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def fuses(x: Tensor) -> bool:
    """Whether norms run in one pass with what surrounds them: inference in float32, where that rounds the same."""
    if torch.is_grad_enabled() or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):
        return False
    return bool(kernels_used(Case(x.device.type, x.dtype)))


def kernels_used(case: Case) -> tuple[str, ...]:
    """The ops of ``glimt_kernels`` that inference calls for ``case``."""
    fused = case.dtype == torch.float32 and not wants_references()
    return ("qk_norm_rope", "ada_norm", "gated_ada_norm") if fused else ()


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.view(x.shape[0], groups, -1, x.shape[2])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with ``x [B, N, D]`` and per-group ``shift, scale [B, G, D]``."""
    groups = _grouped(x, scale.shape[1])
    return torch.addcmul(shift[:, :, None], groups, 1 + scale[:, :, None]).flatten(1, 2)


def norm_modulate(x: Tensor, norm: Fp32LayerNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """``modulate(norm(x))`` in float32, in the dtype of ``x``; ``norm`` without weights of its own."""
    if not fuses(x):
        return modulate(norm(x.float()), shift, scale).to(x.dtype)
    groups = _as_rows(x, scale.shape[1])
    return ada_norm(groups, scale.view(-1, 1, x.shape[2]), shift.view(-1, 1, x.shape[2]), norm.eps).view(x.shape)


def add_norm_modulate(x: Tensor, y: Tensor, norm: Fp32LayerNorm, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``(modulate(norm(x + y)), x + y)``."""
    if not fuses(x):
        x = x + y
        return norm_modulate(x, norm, shift, scale), x
    groups, width = scale.shape[1], x.shape[2]
    normed, total = ada_norm(
        _as_rows(y, groups), scale.view(-1, 1, width), shift.view(-1, 1, width), norm.eps, None, _as_rows(x, groups)
    )
    return normed.view(x.shape), total.view(x.shape)


def _as_rows(x: Tensor, groups: int) -> Tensor:
    """``[B, N, D] -> [B G, N / G, D]``: one row per group of tokens that share a timestep."""
    return x.view(x.shape[0] * groups, -1, x.shape[2])


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``x + y * gate`` in float32, with ``x, y [B, N, D]`` and per-group ``gate [B, G, D]``; in the dtype of ``x``."""
    groups = gate.shape[1]
    out = torch.addcmul(_grouped(x.float(), groups), _grouped(y.float(), groups), gate[:, :, None])
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
        """``x [B, N, D]``, ``proj [B, G, 6, D]`` -> ``[B', N, D]``, B' the batch of ``context``: a multiple of B."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table[None] + proj.float()).unbind(2)
        x = gated_add(x, self.attn1(norm_modulate(x, self.norm1, shift1, scale1), rope), gate1)
        # Only from here do prompts make a difference: guided and unguided rows shared all the work above.
        rows = context.k.shape[0] // x.shape[0]
        x, shift2, scale2, gate2 = (_repeat(tensor, rows) for tensor in (x, shift2, scale2, gate2))
        y, x = add_norm_modulate(x, self.attn2(self.norm2(x), context), self.norm3, shift2, scale2)
        return gated_add(x, self.ffn(y), gate2)


def _repeat(x: Tensor, rows: int) -> Tensor:
    return x if rows == 1 else x.repeat(rows, *[1] * (x.ndim - 1))


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
        self.proj_out = Linear(width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Token grid (t, y, x) of ``latents [B, C, f, h, w]``."""
        pt, ph, pw = self.config.patch_size
        f, h, w = latents.shape[2:]
        return f // pt, h // ph, w // pw

    def prepare_text(self, text: Tensor | FoldedText, image: Tensor | None = None) -> TextContext:
        """Keys and values of every cross-attention, once per request.

        ``text [B, L, text_dim]`` (zero-padded as the text encoder gives it, or folded), ``image [B, Li, image_dim]``
        CLIP tokens (first-last-frame models: ``[2 B, Li, image_dim]``, first and last interleaved).
        """
        tokens, bias, image = self._project(text, image)
        return TextContext(tuple(block.attn2.context(tokens, bias, image) for block in self._blocks()))

    def prepare_time(self, timesteps: Tensor) -> TimeContext:
        """The timestep MLP of every value in ``timesteps [S]``, once per request."""
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
        """``latents [B, in_channels, f, h, w]`` -> velocity ``[B', out_channels, f, h, w]`` in the model's dtype.

        ``timestep``: ``[B]``, ``[B, f]`` (one per latent frame), ``[B, N]`` (one per token), or a prepared Modulation.
        ``text`` and ``image``: as for :meth:`prepare_text`, or what it returned. A text batch B' that is a multiple of
        B holds several prompts for the same latents and timesteps (guidance): all first prompts, then all second ones.
        """
        grid = self.grid(latents)
        rope = rope or rope_tables(self.config.attention_head_dim, grid).to(latents.device)
        time = timestep if isinstance(timestep, Modulation) else self._modulation(timestep)
        x, proj, temb = self._patchify(latents), time.proj, time.temb
        for block, context in zip(self._blocks(), self._contexts(text, image), strict=True):
            x, rows = block(x, context, proj, rope), x.shape[0]
            proj, temb = _repeat(proj, x.shape[0] // rows), _repeat(temb, x.shape[0] // rows)
        shift, scale = (self.scale_shift_table[None] + temb[:, :, None].float()).unbind(2)
        x = norm_modulate(x, self.norm_out, shift, scale)
        return self._unpatchify(self.proj_out(x), grid)

    def _blocks(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.blocks)

    def _modulation(self, timestep: Tensor) -> Modulation:
        return Modulation(*self.condition_embedder.time(timestep if timestep.ndim == 2 else timestep[:, None]))

    def _contexts(self, text: Tensor | FoldedText | TextContext, image: Tensor | None) -> Iterable[CrossContext]:
        if isinstance(text, TextContext):
            return text.layers
        tokens, bias, image = self._project(text, image)
        return (block.attn2.context(tokens, bias, image) for block in self._blocks())

    def _project(self, text: Tensor | FoldedText, image: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tokens, bias = (text.tokens, text.bias) if isinstance(text, FoldedText) else (text, None)
        embedder = self.condition_embedder
        dtype = self.proj_out.weight.dtype
        if image is not None and embedder.image_embedder is not None:
            image = embedder.image_embedder(image.to(dtype))
        return embedder.text_embedder(tokens.to(dtype)), bias, image

    def _patchify(self, latents: Tensor) -> Tensor:
        """A convolution whose stride is its kernel is one matrix product over patches: ``[B, N, D]``."""
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        batch, channels = latents.shape[:2]
        (t, y, x), (pt, ph, pw) = self.grid(latents), self.config.patch_size
        patches = latents.to(weight.dtype).reshape(batch, channels, t, pt, y, ph, x, pw)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * y * x, -1)
        return linear(patches, weight.flatten(1), bias).to(weight.dtype)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        (t, y, x), (pt, ph, pw) = grid, self.config.patch_size
        out = tokens.reshape(-1, t, y, x, pt, ph, pw, self.config.out_channels)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.config.out_channels, t * pt, y * ph, x * pw)

"""The Wan diffusion transformer, 2.1 and 2.2, as one definition.

    latents [B, C, f, h, w] -> patches -> tokens [B, N, D] -> blocks -> velocity [B, C_out, f, h, w]
    block:  x += gate1 * self_attention(modulate1(norm1(x)))
            x += cross_attention(norm2(x), text)
            x += gate2 * mlp(modulate2(norm3(x)))

In inference a block is 13 launches on a GPU: (1) norm and modulation, (2) one product for q, k and v, (3) their norm
and rotation, (4) attention, (5) a product that adds gate and residual, (6) norm2, (7) a product, (8) norm of q,
(9) attention, (10) a product that adds the residual, (11) norm and modulation, (12) a product with GELU, (13) a product
that adds gate and residual. With gradients, under autocast and in exact runs PyTorch computes the same op by op.

:meth:`WanTransformer.quantize` has the products of the blocks and their self-attention take eight-bit numbers (class:
lossy): (1), (3) and (11) give them themselves, and before each of the other products a launch makes them.

Parameter names are those of Diffusers' ``WanTransformer3DModel``. What depends only on the prompt, the schedule or the
grid is computed once per request: :meth:`WanTransformer.prepare_text`, :meth:`WanTransformer.prepare_time` and
:func:`glimt.models.wan.rope.rope_tables`; ``forward`` takes either those or the raw tensors. Differentiable throughout.
Source: "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314), section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.models.eight_bit import EightBitLinear, Rows, norm_rows
from glimt.models.linear import Linear, fuses, linear
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.context import CrossContext, FoldedText, Modulation, TextContext, TimeContext, fold_padding
from glimt.models.wan.layers import ConditionEmbedder, Fp32LayerNorm, Mlp, RmsNorm
from glimt.models.wan.rope import RopeTables, rope_tables, rotate
from glimt_kernels import (
    ada_norm,
    attention,
    attention_8bit_levels,
    estimate_k_mean,
    preferred_formats,
    qk_norm_rope,
    qk_norm_rope_8bit,
    quantize_channels,
)

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

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__(config)
        self.to_qkv: EightBitLinear | None = None  # in place of the three, in eight bits

    def forward(self, x: Tensor | Rows, rope: RopeTables, gate: Tensor, residual: Tensor) -> Tensor:
        """``residual + gate * attention(x)``."""
        q, k, v = (self.split(part) for part in self.project(x))
        if self.to_qkv is not None:
            out: Tensor = self.to_out[0](self._attend_8bit(q, k, v, rope), gate=gate, residual=residual)
            return out
        if fuses(q):
            weights = self.norm_q.weight, self.norm_k.weight
            q, k = qk_norm_rope(q, k, *weights, rope.cos, rope.sin, self.norm_q.eps)
        else:
            q = rotate(self.split(self.norm_q(q.flatten(2))), rope)
            k = rotate(self.split(self.norm_k(k.flatten(2))), rope)
        out = self.to_out[0](attend(q, k, v), gate=gate, residual=residual)
        return out

    def _attend_8bit(self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables) -> Tensor:
        """Attention in the formats that are fastest on this chip; the keys' mean is taken from them first."""
        formats = preferred_formats(q)
        tables, eps = (rope.cos, rope.sin), self.norm_q.eps
        mean = estimate_k_mean(k, self.norm_k.weight, *tables, eps)
        weights = self.norm_q.weight, self.norm_k.weight
        levels = qk_norm_rope_8bit(q, k, *weights, *tables, eps, dtype=formats.qk, k_mean=mean)
        values = quantize_channels(v) if formats.pv.itemsize == 1 else (v.to(formats.pv), None)
        return attention_8bit_levels(*levels, *values, dtype=q.dtype).flatten(2)

    def project(self, x: Tensor | Rows) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[B, N, D]``: in one product where :meth:`fuse` has laid the weights together."""
        # A graph that is compiled or exported has three: where its weights lie is not for it to know.
        if self.to_qkv is not None:
            return self.to_qkv(x).chunk(3, dim=-1)
        assert isinstance(x, Tensor)
        layers = (self.to_q, self.to_k, self.to_v)
        if fuses(x) and not torch.compiler.is_compiling():
            weight, bias = (_together([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            if weight is not None and bias is not None:
                return linear(x, weight, bias).chunk(3, dim=-1)
        return tuple(layer(x) for layer in layers)

    def quantize(self, kind: str) -> None:
        """Products and attention in eight bits from now on."""
        self.to_qkv = EightBitLinear(self.to_q, self.to_k, self.to_v, kind=kind)
        del self.to_q, self.to_k, self.to_v
        self.to_out[0] = EightBitLinear(cast(Linear, self.to_out[0]), kind=kind)

    def fuse(self) -> None:
        """Lay the weights of q, k and v one after the other in memory; names and values stay what they are."""
        layers = (self.to_q, self.to_k, self.to_v)
        for name in ("weight", "bias"):
            parts = [getattr(layer, name) for layer in layers]
            whole = torch.cat([part.detach() for part in parts])
            for layer, part, view in zip(layers, parts, whole.chunk(3), strict=True):
                setattr(layer, name, nn.Parameter(view, requires_grad=part.requires_grad))


def _together(parts: Sequence[Tensor]) -> Tensor | None:
    """The one tensor whose equal parts along the first axis ``parts`` are, if they lie so in memory; no copy."""
    first, size = parts[0], parts[0].numel()
    for i, part in enumerate(parts):
        same = part.shape == first.shape and part.dtype == first.dtype and part.is_contiguous()
        if not same or part.storage_offset() != first.storage_offset() + i * size:
            return None
        if part.untyped_storage() is not first.untyped_storage():
            return None
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


class CrossAttention(Attention):
    """Attention from the video tokens to the text and, in Wan 2.1 I2V and FLF2V, beside it to the image tokens."""

    def quantize(self, kind: str) -> None:
        """The last product in eight bits. Text and image come through once a request, and what asks for words stays:
        in eight bits those queries alone moved the bundled model's velocity by 12 % (INT8) and 5 % (FP8)."""
        self.to_out[0] = EightBitLinear(cast(Linear, self.to_out[0]), kind=kind)

    def context(self, text: Tensor, bias: Tensor | None, image: Tensor | None) -> CrossContext:
        """Keys and values of ``text [B, L, D]`` and ``image [B, Li, D]``."""
        k, v = self.split(self.norm_k(self.to_k(text))), self.split(self.to_v(text))
        if not self.has_image_branch or image is None:
            return CrossContext(k, v, bias)
        k_image = self.split(self.norm_added_k(self.add_k_proj(image)))
        return CrossContext(k, v, bias, k_image, self.split(self.add_v_proj(image)))

    def forward(self, x: Tensor, context: CrossContext, residual: Tensor) -> Tensor:
        """``residual + attention(x, context)``."""
        q = self.split(self.norm_q(self.to_q(x)))
        out = attend(q, context.k, context.v, context.bias)
        if context.k_image is not None and context.v_image is not None:
            out = out + attend(q, context.k_image, context.v_image)
        result: Tensor = self.to_out[0](out, residual=residual)
        return result


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(head_dim) + bias) v``.

    ``q [B, N, heads, head_dim]``, ``k`` and ``v [B, L, heads, head_dim]``, ``bias [B, L]`` per key -> ``[B, N, D]``.
    """
    if fuses(q):
        return attention(q, k.to(q.dtype), v.to(q.dtype), bias=bias).flatten(2)
    mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
    q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


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


def _as_rows(x: Tensor, groups: int) -> Tensor:
    """``[B, N, D] -> [B G, N / G, D]``: one row per group of tokens that share a timestep."""
    return x.view(x.shape[0] * groups, -1, x.shape[2])


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
        self.eight_bit: str | None = None

    def quantize(self, kind: str) -> None:
        """See :meth:`WanTransformer.quantize`."""
        self.eight_bit = kind
        self.attn1.quantize(kind)
        self.attn2.quantize(kind)
        self.ffn.quantize(kind)

    def modulated(self, x: Tensor, norm: Fp32LayerNorm, shift: Tensor, scale: Tensor) -> Tensor | Rows:
        """What the next product takes."""
        if self.eight_bit is not None:
            return norm_rows(x, shift, scale, norm.eps, self.eight_bit)
        return norm_modulate(x, norm, shift, scale)

    def forward(self, x: Tensor, context: CrossContext, modulation: Tensor, rope: RopeTables) -> Tensor:
        """``x [B, N, D]``, ``modulation [B', G, 6, D]`` -> ``[B', N, D]``: B', the batch of ``context``, is n B."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)
        mine = slice(x.shape[0])
        y = self.modulated(x, self.norm1, shift1[mine], scale1[mine])
        x = self.attn1(y, rope, gate1[mine], x)
        # Only from here do prompts make a difference: guided and unguided rows shared all the work above.
        x = _repeat(x, context.k.shape[0] // x.shape[0])
        x = self.attn2(self.norm2(x), context, x)
        y = self.modulated(x, self.norm3, shift2, scale2)
        return self.ffn(y, gate=gate2, residual=x)


def _batch(text: Tensor | FoldedText | TextContext) -> int:
    if isinstance(text, TextContext):
        return text.layers[0].k.shape[0]
    return (text.tokens if isinstance(text, FoldedText) else text).shape[0]


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
        """The timestep MLP of every value in ``timesteps [S]`` and the blocks' tables, once per request."""
        return TimeContext(*self.condition_embedder.time(timesteps), self._tables())

    def fuse(self) -> None:
        """Lay the weights of q, k and v of every self-attention together, for one product instead of three.

        On a CPU three are as good; and there weights may be a file's own pages, of which this would make copies.
        """
        for block in self._blocks():
            block.attn1.fuse()

    def quantize(self, kind: str, device: torch.device | str | None = None) -> None:
        """Have the products of the blocks and their self-attention take eight-bit numbers, ``"int8"`` or ``"fp8"``.

        Embeddings, text, modulation, norms and the last product stay as they are, and so does cross-attention but for
        what leaves it. For inference alone; the weights go, so there is no way back.
        Blocks go to ``device``, if given, one by one and before they are quantized: it never holds the whole weights.
        """
        for block in self._blocks():
            block.to(device).quantize(kind)

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
        x, rows = self._patchify(latents), _batch(text) // latents.shape[0]
        modulations = self._modulations(time, rows, x.shape[1])
        for block, context, modulation in zip(self._blocks(), self._contexts(text, image), modulations, strict=True):
            x = block(x, context, modulation, rope)
        shift, scale = (self.scale_shift_table.float() + _repeat(time.temb, rows)[:, :, None]).unbind(2)
        x = norm_modulate(x, self.norm_out, shift, scale)
        return self._unpatchify(self.proj_out(x), grid)

    def _blocks(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.blocks)

    def _modulation(self, timestep: Tensor) -> Modulation:
        return Modulation(*self.condition_embedder.time(timestep if timestep.ndim == 2 else timestep[:, None]))

    def _tables(self) -> Tensor:
        """The blocks' ``scale_shift_table``: ``[layers, 6, D]`` float32."""
        return torch.cat([block.scale_shift_table.float() for block in self._blocks()])

    def _modulations(self, time: Modulation, rows: int, tokens: int) -> Iterable[Tensor]:
        """``[B rows, G, 6, D]`` float32 of each block: all in one sum, unless every token has a timestep of its own."""
        proj = _repeat(time.proj, rows)
        if not fuses(proj) or proj.shape[1] == tokens:
            return (block.scale_shift_table.float() + proj for block in self._blocks())
        tables = self._tables() if time.tables is None else time.tables
        return (tables[:, None, None] + proj).unbind(0)

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

"""The calls of ``glimt_kernels`` that a Wan transformer makes in inference, said without making them.

What a plan names implementations by, and what ``glimt tune`` times. Written down rather than observed on meta tensors,
because running a module on those imports PyTorch's compiler, which takes longer than loading the bundled model; a test
holds it to what is observed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt.models.eight_bit import dtype_of
from glimt.models.wan.config import WanTransformerConfig


class EightBit(NamedTuple):
    """Formats of a transformer that :meth:`WanTransformer.quantize` was called on.

    Attributes:
        kind: of its products, ``"int8"`` or ``"fp8"``. ``qk``, ``pv``: of attention, see ``preferred_formats``.
    """

    kind: str
    qk: torch.dtype
    pv: torch.dtype


class KernelCall(NamedTuple):
    """An op of ``glimt_kernels`` and its arguments in schema order; tensors are on the meta device."""

    op: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Job:
    """What one transformer is given.

    Attributes:
        grid: tokens (t, y, x).
        groups: of tokens, each with a timestep of its own: 1, or t where images stand in for latent frames.
        timesteps: of the schedule.
        prompts: 1, or 2 with guidance. ``text``: keys of each, padding folded.
        image: CLIP tokens of each prompt; 0 where there are none.
        dtype: of the weights that are not kept in float32.
        together: whether one product gives q, k and v, as on a GPU.
        eight_bit: formats where products and self-attention are eight-bit; ``None`` where they are not.
    """

    grid: tuple[int, int, int]
    groups: int
    timesteps: int
    prompts: int
    text: int
    image: int
    dtype: torch.dtype
    together: bool
    eight_bit: EightBit | None = None

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


def transformer_calls(config: WanTransformerConfig, job: Job) -> Iterator[KernelCall]:
    """Those of ``prepare_text``, ``prepare_time`` and ``forward``; what every block repeats is there once."""
    yield from _context(config, job)
    width, dtype, wide = config.width, job.dtype, torch.float32
    for k, m in ((config.freq_dim, width), (width, width)):
        yield product(m, _empty(job.timesteps, k, dtype=wide))
    yield product(6 * width, _empty(job.timesteps, width, dtype=dtype))
    patch = math.prod(config.patch_size)
    yield product(width, _empty(1, job.tokens, config.in_channels * patch, dtype=dtype))
    attention = _self_attention if job.eight_bit is None else _self_attention_8bit
    yield from attention(config, job, 1)
    if job.prompts > 1 and config.num_layers > 1:  # the first block alone has the prompts' rows in common
        yield from attention(config, job, job.prompts)
    yield from _rest_of_block(config, job)
    yield _modulated(config, job, job.prompts)
    yield product(config.out_channels * patch, _empty(job.prompts, job.tokens, width, dtype=dtype))


def _context(config: WanTransformerConfig, job: Job) -> Iterator[KernelCall]:
    """Keys and values of text and image."""
    width, dtype = config.width, job.dtype
    yield product(width, _empty(job.prompts, job.text, config.text_dim, dtype=dtype))
    text = _empty(job.prompts, job.text, width, dtype=dtype)
    yield product(width, text)
    yield KernelCall("rms_norm", (text, _empty(width, dtype=dtype), config.eps))
    if not job.image or config.image_dim is None:
        return
    image, inner = _empty(job.prompts, job.image, config.image_dim, dtype=dtype), config.image_dim
    keys = _empty(job.prompts, job.image, width, dtype=dtype)
    yield _layer_norm(image, 1e-5)
    yield product(inner, image, activation="gelu_erf")
    yield product(width, image)
    yield _layer_norm(keys, 1e-5)
    if config.added_kv_proj_dim is not None:
        yield product(width, keys)
        yield KernelCall("rms_norm", (keys, _empty(width, dtype=dtype), config.eps))


def _self_attention(config: WanTransformerConfig, job: Job, samples: int) -> Iterator[KernelCall]:
    width, dtype, n = config.width, job.dtype, job.tokens
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    x, weight = _empty(samples, n, width, dtype=dtype), _empty(width, dtype=dtype)
    q, table = _empty(samples, n, heads, head_dim, dtype=dtype), _empty(n, head_dim // 2, dtype=torch.float32)
    yield _modulated(config, job, samples)
    yield product(3 * width if job.together else width, x)
    yield KernelCall("qk_norm_rope", (q, q, weight, weight, table, table, config.eps, False, "interleaved", None))
    yield KernelCall("attention", (q, q, q, head_dim**-0.5, None))
    yield _gated(x, x, job)


def _rest_of_block(config: WanTransformerConfig, job: Job) -> Iterator[KernelCall]:
    """Cross-attention and MLP."""
    width, dtype, n = config.width, job.dtype, job.tokens
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    rows = _empty(job.prompts, n, width, dtype=dtype)
    if config.cross_attn_norm:
        yield _layer_norm(rows, config.eps)
    yield product(width, rows)
    yield KernelCall("rms_norm", (rows, _empty(width, dtype=dtype), config.eps))
    q = _empty(job.prompts, n, heads, head_dim, dtype=dtype)
    text, image = (_empty(job.prompts, keys, heads, head_dim, dtype=dtype) for keys in (job.text, job.image))
    bias = _empty(job.prompts, job.text, dtype=torch.float32)
    yield KernelCall("attention", (q, text, text, head_dim**-0.5, bias))
    if job.image:
        yield KernelCall("attention", (q, image, image, head_dim**-0.5, None))
    hidden = _empty(job.prompts, n, config.ffn_dim, dtype=dtype)
    if job.eight_bit is not None:
        yield from _product_8bit(width, rows, job, residual=rows)
        yield _modulated_8bit(config, job, job.prompts)
        yield _w8a8(config.ffn_dim, rows, job, activation="gelu_tanh")
        yield from _gated_8bit(hidden, rows, job)
        return
    yield product(width, rows, residual=rows)
    yield _modulated(config, job, job.prompts)
    yield product(config.ffn_dim, rows, activation="gelu_tanh")
    yield _gated(hidden, rows, job)


def _modulated(config: WanTransformerConfig, job: Job, prompts: int) -> KernelCall:
    """The norm of ``prompts`` rows, a sample a group of tokens."""
    samples, width = prompts * job.groups, config.width
    x = _empty(samples, job.tokens // job.groups, width, dtype=job.dtype)
    row = _empty(samples, 1, width, dtype=torch.float32)
    return KernelCall("ada_norm", (x, row, row, config.eps))


def _gated(x: Tensor, residual: Tensor, job: Job) -> KernelCall:
    """``residual + gate * product``: of several groups each is a sample, unless every token is one."""
    samples, width = residual.shape[0], residual.shape[2]
    if job.groups not in (1, job.tokens):
        samples *= job.groups
        x, residual = (_empty(samples, job.tokens // job.groups, t.shape[2], dtype=t.dtype) for t in (x, residual))
    gates = job.tokens if job.groups == job.tokens else 1
    return product(width, x, gate=_empty(samples, gates, width, dtype=torch.float32), residual=residual)


def _self_attention_8bit(config: WanTransformerConfig, job: Job, samples: int) -> Iterator[KernelCall]:
    assert job.eight_bit is not None
    width, dtype, n = config.width, job.dtype, job.tokens
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    _, qk, pv = job.eight_bit
    x, weight = _empty(samples, n, width, dtype=dtype), _empty(width, dtype=dtype)
    q, table = _empty(samples, n, heads, head_dim, dtype=dtype), _empty(n, head_dim // 2, dtype=torch.float32)
    yield _modulated_8bit(config, job, samples)
    yield _w8a8(3 * width, x, job)
    few, angles, last = q[:, ::_EVERY], table[::_EVERY], (config.eps, False, "interleaved")
    yield KernelCall("qk_norm_rope", (few, few, weight, weight, angles, angles, *last, None))
    mean = _empty(samples, heads, head_dim, dtype=torch.float32)
    yield KernelCall("qk_norm_rope_8bit", (q, q, weight, weight, table, table, *last, qk, _ROWS, 1.0, mean, None))
    if pv.itemsize == 1:
        yield KernelCall("quantize_channels", (q,))
    levels, values = _empty(*q.shape, dtype=qk), _empty(*q.shape, dtype=pv)
    scale = _empty(samples, heads, -(-n // _ROWS), dtype=torch.float32)
    value_scale = mean if pv.itemsize == 1 else None
    args = (levels, scale, levels, scale, values, value_scale, _ROWS, head_dim**-0.5, None, dtype)
    yield KernelCall("attention_8bit", args)
    yield from _gated_8bit(x, x, job)


_EVERY, _ROWS = 17, 128  # of estimate_k_mean and of qk_norm_rope_8bit, unless told otherwise


def _modulated_8bit(config: WanTransformerConfig, job: Job, prompts: int) -> KernelCall:
    call = _modulated(config, job, prompts)
    return KernelCall("ada_norm_8bit", (*call.args, _levels_of(job)))


def _levels_of(job: Job) -> torch.dtype:
    assert job.eight_bit is not None
    return dtype_of(job.eight_bit.kind)


def _product_8bit(
    m: int, x: Tensor, job: Job, *, gate: Tensor | None = None, residual: Tensor | None = None
) -> Iterator[KernelCall]:
    """``x`` becomes eight-bit first."""
    assert job.eight_bit is not None
    yield KernelCall("quantize_rows", (x, job.eight_bit.kind, False))
    yield _w8a8(m, x, job, gate=gate, residual=residual)


def _gated_8bit(x: Tensor, residual: Tensor, job: Job) -> Iterator[KernelCall]:
    """As :func:`_gated`, but that tokens with timesteps of their own are samples too."""
    samples, width = residual.shape[0] * job.groups, residual.shape[2]
    x, residual = (_empty(samples, job.tokens // job.groups, t.shape[2], dtype=t.dtype) for t in (x, residual))
    return _product_8bit(width, x, job, gate=_empty(samples, 1, width, dtype=torch.float32), residual=residual)


def _w8a8(
    m: int,
    x: Tensor,
    job: Job,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> KernelCall:
    """``linear_w8a8`` of ``x [B, N, K]``, already in levels, with a weight ``[m, K]``."""
    levels, scales = _empty(*x.shape, dtype=_levels_of(job)), _empty(*x.shape[:-1], dtype=torch.float32)
    weight, of_weight = _empty(m, x.shape[-1], dtype=levels.dtype), _empty(m, dtype=torch.float32)
    bias = _empty(m, dtype=x.dtype)
    return KernelCall("linear_w8a8", (levels, scales, weight, of_weight, bias, gate, residual, activation, x.dtype))


def _layer_norm(x: Tensor, eps: float) -> KernelCall:
    weight = _empty(x.shape[-1], dtype=torch.float32)
    return KernelCall("layer_norm", (x, weight, weight, eps))


def product(
    m: int,
    x: Tensor,
    *,
    bias: bool = True,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> KernelCall:
    """``linear`` of ``x [..., K]`` with a weight ``[m, K]``."""
    weight, added = _empty(m, x.shape[-1], dtype=x.dtype), _empty(m, dtype=x.dtype) if bias else None
    return KernelCall("linear", (x, weight, added, gate, residual, activation))


def text_encoder_calls(config: Mapping[str, Any], tokens: int, dtype: torch.dtype) -> Iterator[KernelCall]:
    """Those of a UMT5 encoder (``config``: its ``config.json``) over one prompt."""
    width, inner, hidden = int(config["d_model"]), int(config["num_heads"]) * int(config["d_kv"]), int(config["d_ff"])
    x = _empty(1, tokens, width, dtype=dtype)
    last = torch.float32 if dtype == torch.float16 else dtype  # `wo` is kept wide where the range is narrow
    yield product(inner, x, bias=False)
    yield product(width, _empty(1, tokens, inner, dtype=dtype), bias=False)
    yield product(hidden, x, bias=False, activation="gelu_tanh")
    yield product(hidden, x, bias=False)
    yield product(width, _empty(1, tokens, hidden, dtype=last), bias=False)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")

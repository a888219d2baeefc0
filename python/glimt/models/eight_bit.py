"""Linear layers on eight-bit numbers with scales (INT8 or FP8), weights and activations alike. Class: lossy.

A weight has a scale for each output channel, taken when the model is quantized; activations have one for each token,
taken as they come. Sums are exact (INT8) or float32 (FP8), what leaves a layer has the dtype of the run.
Source: LLM.int8 (arXiv:2208.07339) without its outlier columns, FP8 formats (arXiv:2209.05433).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glimt_kernels import QuantizedWeight, ada_norm_8bit, linear_quant, linear_w8a8, quantize_weight
from glimt_kernels.linear_quant.quantize import KINDS


class Rows(NamedTuple):
    """Activations that have eight bits already: ``levels [B, N, K]``, ``scales [B, N]``, their first dtype."""

    levels: Tensor
    scales: Tensor
    dtype: torch.dtype


class EightBitLinear(nn.Module):
    """``residual + gate * gelu(x W^T + bias)``, each part where it is given, as :class:`glimt.models.linear.Linear`.

    Args:
        layers: linear layers with the same input and with biases; their outputs lie one after the other.
        kind: ``"int8"`` or ``"fp8"``.
    """

    def __init__(self, *layers: nn.Linear, kind: str) -> None:
        super().__init__()
        parts = [quantize_weight(layer.weight, kind) for layer in layers]
        self.kind = kind
        self.levels = nn.Parameter(torch.cat([part.data for part in parts]), requires_grad=False)
        self.scales = nn.Parameter(torch.cat([part.scales for part in parts]), requires_grad=False)
        biases = [layer.bias.detach() for layer in layers]
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False)

    def forward(
        self,
        x: Tensor | Rows,
        *,
        gelu: str | None = None,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """``x [B, N, K]``, ``gate [B, G, M]`` for each of G groups of tokens, ``residual [B, N, M]``."""
        activation = {None: "none", "tanh": "gelu_tanh", "none": "gelu_erf"}[gelu]
        tokens = x.levels if isinstance(x, Rows) else x
        rows = 1 if gate is None else gate.shape[1]
        # Tokens of one timestep are a sample of their own, for which one row of the gate stands.
        own = (tokens.shape[0] * rows, tokens.shape[1] // rows)
        gate = None if gate is None else gate.reshape(own[0], 1, -1)
        added = None if residual is None else residual.reshape(*own, residual.shape[2])
        if isinstance(x, Rows):
            weight = self.levels, self.scales, self.bias
            dtype = x.dtype if added is None else added.dtype
            levels, scales = x.levels.view(*own, -1), x.scales.view(own)
            y = linear_w8a8(levels, scales, *weight, gate, added, activation, dtype)
        else:
            whole = QuantizedWeight(self.levels, self.scales, self.kind)
            y = linear_quant(x.reshape(*own, -1), whole, self.bias, activation=activation, gate=gate, residual=added)
        return y.view(*tokens.shape[:2], -1)


def norm_rows(x: Tensor, shift: Tensor, scale: Tensor, eps: float, kind: str) -> Rows:
    """``layer_norm(x) * (1 + scale) + shift`` with ``shift, scale [B, G, D]`` of each group of tokens, in levels."""
    groups, width = x.view(x.shape[0] * scale.shape[1], -1, x.shape[2]), x.shape[2]
    scale, shift = scale.view(-1, 1, width), shift.view(-1, 1, width)
    levels, scales = ada_norm_8bit(groups, scale, shift, eps, dtype=dtype_of(kind))
    return Rows(levels.view(x.shape), scales.view(x.shape[:2]), x.dtype)


def dtype_of(kind: str) -> torch.dtype:
    """Of the levels of a kind."""
    return KINDS[kind][0]

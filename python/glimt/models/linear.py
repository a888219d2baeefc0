"""The matrix products of the models with what follows them: one op of ``glimt_kernels`` in inference, else PyTorch's.

Autograd, autocast and exact runs (``glimt_kernels.references_only``) take the plain form, op by op.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glimt_kernels as kernels
from glimt_kernels import dispatch


def fuses(x: Tensor) -> bool:
    """Whether models call the ops of ``glimt_kernels`` on ``x``: inference, within the budget of NUMERICS.md."""
    if torch.is_grad_enabled() or kernels.wants_references():
        return False
    return x.is_meta or not torch.is_autocast_enabled(x.device.type)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``residual + gate * gelu(x weight^T + bias)``, each part where it is given.

    Args:
        x: ``[..., K]``; ``weight [M, K]``, ``bias [M]``.
        gelu: ``"tanh"`` or ``"none"``, as ``approximate`` of ``F.gelu``.
        gate: ``[B, G, M]`` float32, one for each of G groups of tokens of ``x [B, N, K]``.
        residual: ``[..., M]``.
    """
    if fuses(x):
        activation = None if gelu is None else {"tanh": "gelu_tanh", "none": "gelu_erf"}[gelu]
        return kernels.linear(x, weight, bias, activation=activation, gate=gate, residual=residual)
    if dispatch.is_recording():
        dispatch.note(dispatch.choose("linear", dispatch.case_of([x, weight]), "aten"))
    out = F.linear(x, weight, bias)
    if gelu is not None:
        out = F.gelu(out, approximate=gelu)
    if residual is None:
        return out
    return residual + out if gate is None else gated_add(residual, out, gate)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``x + y * gate`` in float32, with ``x, y [B, N, D]`` and per-group ``gate [B, G, D]``; in the dtype of ``x``."""
    groups = (x.shape[0], gate.shape[1], -1, x.shape[2])
    out = torch.addcmul(x.float().view(groups), y.float().view(groups), gate[:, :, None])
    return out.flatten(1, 2).to(x.dtype)


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`."""

    def forward(
        self,
        x: Tensor,
        *,
        gelu: str | None = None,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        return linear(x, self.weight, self.bias, gelu=gelu, gate=gate, residual=residual)

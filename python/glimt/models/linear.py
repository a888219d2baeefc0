"""The matrix products of the models: ``F.linear``, run by oneDNN where that is faster.

PyTorch sends float32 ``F.linear`` on a CPU to MKL, whose sgemm is slow on processors that are not Intel's: measured
on one Zen 5 core, 110 GFLOP/s against oneDNN's 250 with the same unpacked weight, and GELU rides along as an epilogue
(46 -> 226 GFLOP/s for the two). Both sum in float32; class: equivalent. Autograd, autocast, other dtypes, other
devices and exact runs (``glimt_kernels.references_only``) take ``F.linear``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt_kernels import Case, wants_references

OPS = ("linear", "convolution")  # what these libraries run, as plans and records name it
_ABSENT = "this PyTorch has no oneDNN with fused products"


@cache
def has_onednn() -> bool:
    """Whether this PyTorch carries oneDNN's fused linear for CPUs."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def library(case: Case) -> tuple[str, tuple[str, ...]]:
    """Whose products and convolutions run ``case`` in inference: "onednn", called by name, or "aten", PyTorch's choice.

    Also the reasons why oneDNN does not run though ``case`` is one it is called for.
    """
    if _not_meant(case):
        return "aten", ()
    return ("onednn", ()) if has_onednn() else ("aten", (_ABSENT,))


def _not_meant(case: Case) -> list[str]:
    """Every reason why oneDNN is not called for ``case`` even where it is there."""
    reasons = []
    if case.device != "cpu":
        reasons.append(f"it is called on the CPU, the tensors are on {case.device}")
    if case.dtype != torch.float32:
        reasons.append(f"it is called for float32, the tensors are {str(case.dtype).removeprefix('torch.')}")
    if wants_references():
        reasons.append("exact runs take PyTorch's own choice")
    return reasons


def inventory(case: Case) -> list[dict[str, Any]]:
    """Both libraries for each of ``OPS``, in the rows of ``glimt_kernels.inventory``."""
    chosen, _ = library(case)
    reasons = {"onednn": _not_meant(case) + ([] if has_onednn() else [_ABSENT]), "aten": []}
    return [
        {"op": op, "impl": impl, "chosen": impl == chosen, "reasons": list(why)}
        for op in OPS
        for impl, why in reasons.items()
    ]


def runs_onednn(*tensors: Tensor) -> bool:
    """Whether an op on these tensors is inference in float32 on a CPU, which oneDNN is called for by name."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return all(library(Case(tensor.device.type, tensor.dtype))[0] == "onednn" for tensor in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``: ``x [..., K]``, ``weight [M, K]``, ``bias [M]`` -> ``[..., M]``."""
    if runs_onednn(x, weight) and x.numel() > 0:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """``gelu(x weight^T + bias)``; ``approximate`` is ``"tanh"`` or ``"none"``, as for ``F.gelu``."""
    if runs_onednn(x, weight) and x.numel() > 0:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "gelu", [], approximate)
    return F.gelu(F.linear(x, weight, bias), approximate=approximate)


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

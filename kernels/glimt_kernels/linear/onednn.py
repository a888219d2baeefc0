"""linear by oneDNN, called by name on a CPU in float32, and what else is called so: the convolutions of the models.

PyTorch sends float32 ``F.linear`` on a CPU to MKL, whose sgemm is slow on processors that are not Intel's: measured
on one Zen 5 core, 110 GFLOP/s against oneDNN's 250 with the same unpacked weight, and GELU rides along as an epilogue
(46 -> 226 GFLOP/s for the two), as does a residual. Both sum in float32; class: equivalent. Autograd, autocast, other
dtypes, other devices and exact runs (``glimt_kernels.references_only``) leave the choice to PyTorch ("aten").
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from glimt_kernels.dispatch import Candidate, Case, Choice, note, wants_references
from glimt_kernels.linear.call import call_of, dtype_of

ABSENT = "this PyTorch has no oneDNN with fused products"


@cache
def has_onednn() -> bool:
    """Whether this PyTorch carries oneDNN's fused linear for CPUs."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    product, x = torch.ops.mkldnn._linear_pointwise, x.contiguous()
    out: Tensor
    if activation != "none":
        out = product(x, weight, bias, "gelu", [], activation.replace("gelu_", "").replace("erf", "none"))
    elif residual is not None and gate is None and residual.dtype == x.dtype:
        out = product.binary(x, residual.contiguous(), weight, bias, "add")
        return out
    else:
        out = product(x, weight, bias, "none", [], "")
    if residual is None:
        return out
    if gate is None:
        return out.add_(residual) if residual.dtype == x.dtype else (residual + out).to(residual.dtype)
    if gate.dtype == residual.dtype == x.dtype:
        return torch.addcmul(residual, out, gate, out=out)
    return (residual + out * gate).to(residual.dtype)


def reasons(case: Case) -> list[str]:
    """Why it cannot run a linear layer."""
    found = [] if has_onednn() else [ABSENT]
    if case.device != "cpu":
        found.append(f"it is called on the CPU, the tensors are on {case.device}")
    if dtype_of(case) != torch.float32:
        found.append(f"it is called for float32, the tensors are {_name(dtype_of(case))}")
    if call_of(case).empty:
        found.append("it takes no empty tensors")
    return found


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _onednn_reasons(case: Case) -> list[str]:
    return [] if has_onednn() else [ABSENT]


def _onednn_reluctance(case: Case) -> list[str]:
    """Every reason why oneDNN is not called for ``case`` even where it is there."""
    found = []
    if case.device != "cpu":
        found.append(f"it is called on the CPU, the tensors are on {case.device}")
    if case.dtype != torch.float32:
        found.append(f"it is called for float32, the tensors are {_name(case.dtype)}")
    if wants_references():
        found.append("exact runs take PyTorch's own choice")
    return found


# Called by the models in their own ways, so that this is no op; named and chosen like one all the same.
CONVOLUTIONS = (
    Candidate(
        "convolution",
        "onednn",
        lambda *args: torch.ops.mkldnn._convolution_pointwise(*args),
        _onednn_reasons,
        _onednn_reluctance,
    ),
    Candidate("convolution", "aten", torch.conv3d),
)


@cache
def _chosen(case: Case, exact: bool, able: bool) -> Choice:
    return Choice(CONVOLUTIONS[0 if able else 1], case, CONVOLUTIONS, "aten" if exact else "")


def convolutions(case: Case) -> Choice:
    """Whose convolutions run ``case`` in inference: "onednn", called by name, or "aten", PyTorch's choice."""
    return _chosen(case, wants_references(), not (_onednn_reasons(case) or _onednn_reluctance(case)))


def library(case: Case) -> tuple[str, tuple[str, ...]]:
    """Name of the one that :func:`convolutions` chooses, and why oneDNN cannot run though it is called for ``case``."""
    choice = convolutions(case)
    return choice.impl, () if _onednn_reluctance(case) else choice.passed_over().get("onednn", ())


def inventory(case: Case) -> list[dict[str, Any]]:
    """Both libraries for convolutions, in the rows of ``glimt_kernels.inventory``."""
    chosen = convolutions(case).candidate
    return [
        {
            "op": "convolution",
            "form": "",
            "impl": candidate.impl,
            "chosen": candidate is chosen,
            "reasons": [*candidate.reluctance(case), *candidate.reasons(case)],
        }
        for candidate in CONVOLUTIONS
    ]


def runs_onednn(*tensors: Tensor) -> bool:
    """Whether a convolution of these tensors is inference in float32 on a CPU, which oneDNN is called for by name."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    found = [convolutions(Case(tensor.device.type, tensor.dtype)) for tensor in tensors]
    note(*found)
    return all(choice.impl == "onednn" for choice in found)

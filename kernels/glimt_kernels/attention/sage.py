"""attention by SageAttention: q and k in 8 bits, which changes the picture; only where asked for by name."""

from __future__ import annotations

import importlib
import importlib.util

from torch import Tensor

from glimt_kernels.attention.call import into, library_reasons
from glimt_kernels.dispatch import Case


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    sageattention = importlib.import_module("sageattention")
    return into(out, sageattention.sageattn(q, k, v, tensor_layout="NHD", is_causal=False, sm_scale=scale))


def reasons(case: Case) -> list[str]:
    found = library_reasons(case, 128)
    if importlib.util.find_spec("sageattention") is None:
        found.append("not installed: pip install sageattention")
    return found


def reluctance(case: Case) -> list[str]:
    return ["it is lossy: 8-bit q and k"]

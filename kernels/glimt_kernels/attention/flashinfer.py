"""attention by FlashInfer, which compiles its kernel for the chip at the first call; only where asked for by name."""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor

from glimt_kernels.attention.call import call_of, library_reasons
from glimt_kernels.dispatch import Case

HEAD_DIMS = (64, 128, 256)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    prefill = importlib.import_module("flashinfer").single_prefill_with_kv_cache
    result = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    # One sample a call: its batched form plans on the host, which would have to wait for the device.
    for place, *sample in zip(result, q, k, v, strict=True):
        place.copy_(prefill(*sample, causal=False, kv_layout="NHD", sm_scale=scale))
    return result


def reasons(case: Case) -> list[str]:
    found = library_reasons(case, max(HEAD_DIMS))
    if call_of(case).head_dim not in HEAD_DIMS:
        found.append(f"it takes a head_dim of {', '.join(map(str, HEAD_DIMS))}, found {call_of(case).head_dim}")
    if importlib.util.find_spec("flashinfer") is None:
        found.append("not installed: pip install flashinfer-python")
    return found

"""attention by PyTorch's scaled_dot_product_attention, which chooses among its own kernels: the one used on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.attention.call import call_of, dtype_of, into
from glimt_kernels.dispatch import Case


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    mask = None
    if bias is not None:
        if q.is_cuda:
            # Not all of its CUDA kernels give zeros where every key of a sample is masked.
            alive = (bias > -torch.inf).any(1)
            bias, v = bias.masked_fill(~alive[:, None], 0.0), v.masked_fill(~alive[:, None, None, None], 0.0)
        mask = bias[:, None, None, :].to(q.dtype if q.is_cuda else torch.float32)
    heads_first = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return into(out, heads_first.transpose(1, 2))


def reasons(case: Case) -> list[str]:
    found = []
    if case.device not in ("cpu", "cuda"):
        found.append(f"it runs on a CPU or on CUDA, the tensors are on {case.device}")
    if dtype_of(case) not in (torch.float32, torch.float16, torch.bfloat16):
        found.append(f"it takes float32, float16 and bfloat16, the tensors are {case.dtype}")
    if case.device == "cuda" and call_of(case).keys == 0:
        found.append("its CUDA kernels need a key")
    return found

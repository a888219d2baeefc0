"""attention by cuDNN, called through PyTorch (which itself prefers another kernel on most chips)."""

from __future__ import annotations

import torch
from torch import Tensor

from glimt_kernels.attention.call import into, library_reasons
from glimt_kernels.dispatch import Case

# 9.1 is the first that PyTorch's attention is tested with.
OLDEST = 90100


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    # Not sdpa_kernel(CUDNN_ATTENTION): that sets a choice of the whole process, not of this thread.
    heads_first = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, False, scale=scale
    )[0]
    return into(out, heads_first.transpose(1, 2))


def reasons(case: Case) -> list[str]:
    found = library_reasons(case, 128)
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if version is None:
        found.append("this PyTorch has no cuDNN; install a CUDA build of it")
    elif version < OLDEST:
        found.append(f"it needs cuDNN 9.1 or newer, found {version}")
    return found

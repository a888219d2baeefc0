"""chunk_attention by PyTorch's scaled_dot_product_attention over a copy of the spans, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels.attention import sdpa
from glimt_kernels.attention.call import into
from glimt_kernels.chunk_attention.reference import gather
from glimt_kernels.dispatch import Case


def chunk_attention(
    q: Tensor,
    sink_q: Tensor | None,
    k: Tensor,
    v: Tensor,
    spans: Sequence[int],
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    if not spans:
        return into(out, torch.zeros_like(q, memory_format=torch.contiguous_format))
    keys, values = ((x[0] if len(x) == 1 else torch.cat(x, 1)) for x in (gather(k, spans), gather(v, spans)))
    return sdpa.attention(q, keys, values, scale, None, out)


def reasons(case: Case) -> list[str]:
    found = sdpa.reasons(case._replace(sizes=()))
    if case.sizes and case.sizes[1]:
        found.append("the sink has queries of its own: two softmaxes would have to be joined")
    return found

"""attention by attention_8bit: operands rounded to 8 bits, which changes the picture; only where asked for by name."""

from __future__ import annotations

from torch import Tensor

from glimt_kernels.attention.call import call_of, dtype_of, into
from glimt_kernels.attention_8bit.api import Call, attention_8bit, preferred, triton_reasons_of
from glimt_kernels.dispatch import Case
from glimt_kernels.quantize_qkv.api import FP8


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return into(out, attention_8bit(q, k, v, scale=scale, bias=bias, impl="triton"))


def reasons(case: Case) -> list[str]:
    dtype = dtype_of(case)
    fp8 = dtype is not None and FP8 in preferred(case.arch, dtype)
    return triton_reasons_of(case._replace(dtype=dtype, sizes=()), Call(call_of(case).head_dim, int(fp8)))


def reluctance(case: Case) -> list[str]:
    return ["it is lossy: operands in 8 bits"]

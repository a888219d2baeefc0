"""The forms of an op's calls between which its choice of an implementation may differ; an op not named has one.

What :func:`glimt_kernels.listing.inventory` goes through, at the head_dim and sizes that models have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from glimt_kernels.attention.call import call_of as attention_call
from glimt_kernels.attention_8bit.api import Call as Attention8Bit
from glimt_kernels.dispatch import Case
from glimt_kernels.linear.call import DTYPES
from glimt_kernels.linear.call import call_of as linear_call

Form = Callable[[Case], Case]
ROWS, WIDTH, HEAD_DIM = 32768, 4096, 128


def _plain(case: Case) -> Case:
    return case


def _linear(case: Case, **parts: int) -> Case:
    return case._replace(sizes=linear_call(case)._replace(**parts))


def _attention(case: Case, **parts: int) -> Case:
    return case._replace(sizes=attention_call(case)._replace(**parts))


def _attention_8bit(case: Case, fp8: int) -> Case:
    call = Attention8Bit(HEAD_DIM, fp8, int(case.dtype == torch.bfloat16))
    return case._replace(dtype=None, sizes=call)


def _flag(case: Case, fp8: int, *before: int) -> Case:
    return case._replace(sizes=(*before, fp8))


def _bytes(case: Case) -> Case:
    return case._replace(dtype=torch.float32)


def _step(case: Case) -> Case:
    """Latents in float32, velocities in the working dtype; two outputs and one step of history."""
    dtype = torch.float32 if case.dtype == torch.float32 else None
    return case._replace(dtype=dtype, sizes=(1, 1, 2, 1))


def _product(case: Case, fp8: int) -> Case:
    dtype = DTYPES.index(case.dtype or torch.float32)
    return case._replace(dtype=None, sizes=(int(not fp8), 0, dtype, ROWS, WIDTH, WIDTH, 0))


def _in_both(form: Callable[..., Case], *before: int) -> dict[str, Form]:
    return {name: partial(_at_end, form, fp8, before) for fp8, name in enumerate(("int8", "fp8"))}


def _at_end(form: Callable[..., Case], fp8: int, before: tuple[int, ...], case: Case) -> Case:
    return form(case, fp8, *before)


FORMS: Mapping[str, Mapping[str, Form]] = {
    "attention": {"": _plain, "with a bias": partial(_attention, biased=1)},
    "linear": {
        "": _plain,
        "with GELU": partial(_linear, activation=1),
        "with a gated residual": partial(_linear, gate=1, residual=1),
    },
    "attention_8bit": _in_both(_attention_8bit),
    "ada_norm_8bit": _in_both(_flag),
    "gated_ada_norm_8bit": _in_both(_flag),
    "qk_norm_rope_8bit": _in_both(_flag),
    "quantize_blocks": _in_both(_flag, HEAD_DIM),
    "linear_w8a8": _in_both(_product),
    "linear_w8": _in_both(_product),
    "frames_to_uint8": {"": _bytes},  # pixels are float32 whatever made them
    "frames_to_nv12": {"": _bytes},
    "guidance_step": {"": _step},
}

"""All bugs, and which of them a run plants."""

from __future__ import annotations

import zlib

from bugs_8bit import ATTENTION_8BIT, QUANTIZE_QKV
from bugs_attention import ATTENTION, CHUNK_ATTENTION, SPARSE_ATTENTION
from bugs_conv_cuda import CONV_CUDA
from bugs_convolutions import CAUSAL_CONV3D, CAUSAL_CONV3D_NORM, UPSAMPLE_CONV
from bugs_linear import LINEAR, LINEAR_QUANT
from bugs_manifest import MANIFEST
from bugs_native import NATIVE
from bugs_norms import ADA_NORM, NORM, QK_NORM_ROPE, QK_NORM_ROPE_8BIT, RMS_NORM_SILU
from bugs_pixels import FRAMES, GUIDANCE_STEP
from plant import PACKAGE, Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *ADA_NORM,
    *ATTENTION,
    *ATTENTION_8BIT,
    *CAUSAL_CONV3D,
    *CAUSAL_CONV3D_NORM,
    *CHUNK_ATTENTION,
    *CONV_CUDA,
    *FRAMES,
    *GUIDANCE_STEP,
    *LINEAR,
    *LINEAR_QUANT,
    *MANIFEST,
    *NORM,
    *QK_NORM_ROPE,
    *QK_NORM_ROPE_8BIT,
    *QUANTIZE_QKV,
    *RMS_NORM_SILU,
    *SPARSE_ATTENTION,
    *UPSAMPLE_CONV,
    *NATIVE,
)


def sample() -> list[Mutation]:
    """One of each file of kernels, of those of CPUs none; which one changes with the file."""
    by_file: dict[str, list[Mutation]] = {}
    for mutation in MUTATIONS:
        if not mutation.native:
            by_file.setdefault(mutation.file, []).append(mutation)
    return [found[zlib.crc32((PACKAGE / file).read_bytes()) % len(found)] for file, found in by_file.items()]


def table() -> str:
    """What README.md shows."""
    lines = ["| op | file | bug | caught by |", "|---|---|---|---|"]
    lines += [f"| {m.op} | {m.file} | {m.what} | {m.test.partition('::')[2]} |" for m in MUTATIONS]
    return "\n".join(lines) + "\n"

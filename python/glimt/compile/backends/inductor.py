"""PyTorch's own compiler on the transformer's blocks, when they are first called.

Each block is one graph with no break in it (``fullgraph``): what Dynamo cannot trace is an error, not a detour. Blocks
of one form share what is compiled. Ops of ``glimt_kernels`` are nodes of that graph, so that the same kernels run as
without it; Inductor fuses what stands between them. Sizes other than the first are compiled anew once, then for any.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from glimt.errors import CompileError
from glimt.models.wan.transformer import WanTransformer


def compile_blocks(model: WanTransformer) -> None:
    """Have the blocks of ``model`` run compiled from now on; its parameters and their names stay what they are.

    Raises:
        CompileError: what Inductor needs on this device is not there.
    """
    _require_compiler(model.proj_out.weight.device)
    for block in model.blocks:
        block.compile(fullgraph=True)


def _require_compiler(device: torch.device) -> None:
    """Inductor writes C++ for a CPU and Triton for a GPU."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise CompileError("backend: 'inductor' needs Triton on a GPU; pip install triton, or use backend='eager'")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise CompileError("backend: 'inductor' needs a C++ compiler on a CPU; install g++, or use 'eager'") from error

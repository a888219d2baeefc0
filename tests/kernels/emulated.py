"""causal_conv3d's CUDA kernels, compiled for this processor (emulator/): the same source, a fiber for each thread."""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import glimt_kernels
from glimt_kernels.causal_conv3d.cuda import sizes_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class _Conv(ctypes.Structure):
    """``conv::Conv`` of geometry.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "past", "weight", "bias", "plus", "gamma", "y", "normed")),
        *((name, ctypes.c_int) for name in ("batch", "frames", "known", "height", "width", "channels", "out")),
        *((f"{name}_{step}", ctypes.c_int64) for name in ("x", "past", "plus") for step in ("batch", "frame")),
    ]


@cache
def _library() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        built = Path(folder) / "emulated.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-shared", "-fPIC", "-DGLIMT_EMULATED"]
        command += ["-U_FORTIFY_SOURCE"]  # which takes a jump from fiber to fiber for a mistake
        command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
        command += [f"-I{Path(glimt_kernels.__file__).parent}", "-o", str(built), str(HERE / "emulator/conv.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(built))
    library.emulate.restype = ctypes.c_int64
    return library


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    plus: Tensor | None = None,
    gamma: Tensor | None = None,
    *,
    hopper: bool,
    keep: bool = True,
    seed: int = 0,
    blocks: int = 2,
) -> tuple[Tensor | None, Tensor | None, int]:
    """(y, its norm, bank conflicts) of one launch; on sm_90a with ``blocks`` blocks that stay.

    Tensors as ``glimt_kernels.causal_conv3d.cuda`` gives them to the kernel. Outputs begin as NaN.

    Raises:
        AssertionError: the kernel did what it may not, or its threads wait for each other for ever.
    """
    b, _, f, h, w = x.shape
    shape = (b, weight.shape[0], f, h, w)

    def out(wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        return torch.full(shape, float("nan")).bfloat16().contiguous(memory_format=torch.channels_last_3d)

    y, normed = out(keep), out(gamma is not None)
    tensors = (x, past, weight, bias, plus, gamma, y, normed)
    call = _Conv(*(None if t is None else t.data_ptr() for t in tensors), *sizes_of(x, shape[1], past, plus))
    why = ctypes.create_string_buffer(400)
    conflicts = _library().emulate(ctypes.byref(call), hopper, seed, blocks, why, len(why))
    assert conflicts >= 0, why.value.decode()
    return y, normed, conflicts

"""attention by the flash-attn packages: the generation written for the chip, where it is installed.

Generation 2 on sm_90 is what PyTorch's own attention runs there, so only 3 and 4 are taken on it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from torch import Tensor

from glimt_kernels.attention.call import call_of, chip, into, library_reasons
from glimt_kernels.dispatch import Case, case_of

# Best first. 2: flash_attn, 3: flash_attn_interface, 4: flash_attn.cute.
MODULES: Mapping[int, tuple[str, ...]] = {
    80: ("flash_attn",),
    86: ("flash_attn",),
    89: ("flash_attn",),
    90: ("flash_attn_interface", "flash_attn.cute"),
    100: ("flash_attn.cute",),
    120: ("flash_attn.cute", "flash_attn"),
}
# The largest head_dim of each, by chip where that matters (flash_attn/cute/interface.py: _validate_head_dims).
HEAD_DIMS: Mapping[tuple[str, int], int] = {("flash_attn.cute", 100): 128, ("flash_attn.cute", 120): 128}
LARGEST = 256
INSTALL = {
    "flash_attn": "pip install flash-attn --no-build-isolation",
    "flash_attn_interface": "build hopper/ of github.com/Dao-AILab/flash-attention",
    "flash_attn.cute": "pip install flash-attn-4",
}


@cache
def _installed(name: str) -> bool:
    """Without importing: a package's import loads its CUDA code."""
    package, _, module = name.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not module:
        return spec is not None and spec.origin is not None  # a bare folder is generation 4's alone
    return any((Path(place) / module).is_dir() for place in spec.submodule_search_locations or ())


def _largest(name: str, known: int) -> int:
    return HEAD_DIMS.get((name, known), LARGEST)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    known = chip(case_of([q]).arch)
    name = next(name for name in MODULES[known] if _installed(name) and q.shape[3] <= _largest(name, known))
    found = importlib.import_module(name).flash_attn_func(q, k, v, softmax_scale=scale)
    return into(out, found[0] if isinstance(found, tuple) else found)


def reasons(case: Case) -> list[str]:
    found = library_reasons(case, LARGEST)
    known, head_dim = chip(case.arch), call_of(case).head_dim
    modules = MODULES.get(known, ())
    here = [name for name in modules if _installed(name)]
    if not here:
        wanted = modules or tuple(INSTALL)
        found.append("not installed: " + ", or ".join(f"{name} ({INSTALL[name]})" for name in wanted))
    elif all(_largest(name, known) < head_dim <= LARGEST for name in here):
        limits = ", ".join(f"{name} takes a head_dim of at most {_largest(name, known)}" for name in here)
        found.append(f"on sm_{known} {limits}; found {head_dim}")
    return found

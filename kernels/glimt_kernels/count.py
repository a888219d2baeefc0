"""Count what a piece of PyTorch would launch, move and compute, without doing it: run it on meta tensors inside.

    with Count() as count, torch.device("meta"):
        model(x)
    print(count.launches, count.traffic_bytes("other") / 1e9)

Every operator that computes is one launch; views, allocations and reads of metadata are none. An operator moves each
of its tensor arguments and results once, so a broadcast argument counts with the elements it has in memory. That is an
upper bound for operators that a library would fuse and the truth for those that it runs one by one. ``glimt::`` ops are
one launch each: what their kernels are written to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("matrix", "attention", "other")
_MATRIX = {"mm", "addmm", "bmm", "baddbmm", "linear", "_addmm_activation", "convolution", "_scaled_mm", "_int_mm"}
_MATRIX_OPS = ("linear",)  # beginnings of names in the namespace glimt
_ATTENTION = ("scaled_dot_product", "_scaled_dot_product", "attention", "chunk_attention", "sparse_attention")
# Give memory or another look at it, and compute nothing.
_FREE = {
    "alias", "as_strided", "chunk", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "flatten",
    "is_same_size", "lift_fresh", "movedim", "narrow", "new_empty", "new_empty_strided", "permute", "reshape",
    "select", "slice", "split", "split_with_sizes", "squeeze", "sym_numel", "sym_size", "sym_stride", "t", "transpose",
    "unbind", "unfold", "unsafe_split", "unsqueeze", "view", "view_as", "_reshape_alias", "_unsafe_view",
    "view_as_complex", "view_as_real", "real", "imag", "_local_scalar_dense", "item",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One operator call: its name, "matrix", "attention" or "other", and the bytes it moves at most."""

    name: str
    kind: str
    num_bytes: int


class _WholeAttention(TorchFunctionMode):
    """Has PyTorch's attention count as the one kernel that it is on a GPU; on meta tensors it would fall apart."""

    def __init__(self, calls: list[Launch]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v, *rest = args if len(args) >= 3 else [(kwargs or {})[name] for name in ("query", "key", "value")]
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        self._calls.append(Launch("scaled_dot_product_attention", "attention", _bytes([q, k, v, *rest, out])))
        return out


class Count(TorchDispatchMode):
    """Every operator called inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Launch] = []
        self._attention = _WholeAttention(self.calls)

    def __enter__(self) -> Any:
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.rstrip("_") not in _FREE:
            qualified = f"{func.namespace}::{name}" if func.namespace != "aten" else name
            moved = _bytes(tree_leaves((args, kwargs))) + _bytes(tree_leaves(result))
            self.calls.append(Launch(qualified, _kind(func.namespace, name), moved))
        return result

    @property
    def launches(self) -> int:
        return len(self.calls)

    def traffic_bytes(self, *kinds: str) -> int:
        """Bytes moved by calls of these kinds; of all where none is named."""
        wanted = kinds or KINDS
        return sum(call.num_bytes for call in self.calls if call.kind in wanted)

    def by_name(self) -> list[tuple[str, int, int]]:
        """(operator, launches, bytes), the most bytes first."""
        number: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        for call in self.calls:
            number[call.name] += 1
            moved[call.name] += call.num_bytes
        return [(name, number[name], moved[name]) for name, _ in moved.most_common()]


def _kind(namespace: str, name: str) -> str:
    if name.startswith(_ATTENTION):
        return "attention"
    if (namespace == "aten" and name in _MATRIX) or (namespace == "glimt" and name.startswith(_MATRIX_OPS)):
        return "matrix"
    return "other"


def _bytes(leaves: Iterable[Any]) -> int:
    """Of the distinct elements in memory: an expanded axis counts once."""
    total = 0
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            sizes = [size for size, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride or size == 0]
            total += torch.Size(sizes).numel() * leaf.element_size()
    return total

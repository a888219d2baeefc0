"""Count what a piece of PyTorch would launch, move and compute, without doing it: run it on meta tensors inside.

    with torch.no_grad(), Count() as count, torch.device("meta"):
        model(x)
    print(count.launches, count.traffic_bytes("other") / 1e9)

Every operator that computes is one launch; views, allocations and reads of metadata are none. An operator moves each
of its tensor arguments and results once, so a broadcast argument counts with the elements it has in memory. That is an
upper bound for operators that a library would fuse and the truth for those that it runs one by one.

What is assumed of ``glimt::`` ops: the device is a GPU of ``arch`` with Triton and without other libraries' kernels,
and the implementation is the one that the dispatcher chooses there. A Triton or CUDA kernel is one launch, as each is
written to be, and moves its arguments and results once; any other implementation (PyTorch's products, a reference)
counts as the operators that it calls. A matrix product's traffic, of the kind "matrix", has its epilogue's in it: the
residual is read there, and counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from glimt_kernels import triton_env
from glimt_kernels.dispatch import Candidate, Op, find, unsupported_reasons

KINDS = ("matrix", "attention", "other")
_MATRIX = {"mm", "addmm", "bmm", "baddbmm", "linear", "_addmm_activation", "convolution", "_scaled_mm", "_int_mm"}
_MATRIX_OPS = ("linear", "causal_conv3d", "upsample_conv")  # beginnings of names in the namespace glimt
_KERNELS = ("triton", "cuda")  # implementations that are one launch
_ATTENTION = ("scaled_dot_product", "_scaled_dot_product", "attention", "chunk_attention", "sparse_attention")
_OVERWRITING = {"copy_", "fill_", "zero_"}  # write their first argument without reading it
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
    """One operator call.

    Attributes:
        kind: "matrix", "attention" or "other". ``num_bytes``: that it moves at most.
        flops: two for a multiplication and a sum, of matrices and attention alone; ``None`` where it is not known.
    """

    name: str
    kind: str
    num_bytes: int
    flops: int | None = 0


class _WholeAttention(TorchFunctionMode):
    """Has PyTorch's attention count as the one kernel that it is on a GPU; on meta tensors it would fall apart."""

    def __init__(self, calls: list[Launch]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v, *rest = args if len(args) >= 3 else [(kwargs or {})[name] for name in ("query", "key", "value")]
        *samples, heads, tokens, _ = q.shape  # on a GPU the heads of a token lie together in what comes out
        out = q.new_empty(*samples, tokens, heads, v.shape[-1]).transpose(-2, -3)
        flops = 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        self._calls.append(Launch("scaled_dot_product_attention", "attention", _bytes([q, k, v, *rest, out]), flops))
        return out


class Count(TorchDispatchMode):
    """Every operator called inside, in order; ``arch`` is the GPU that is thought of (90 for sm_90)."""

    def __init__(self, arch: int = 90) -> None:
        super().__init__()
        self.arch = arch
        self.calls: list[Launch] = []
        self._attention = _WholeAttention(self.calls)

    def __enter__(self) -> Any:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("count under torch.no_grad(): in inference mode PyTorch does not show what copies")
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inner = self._inner(func.namespace, name, args)
        if inner is not None:
            self.calls += inner
        elif name.rstrip("_") not in _FREE:
            qualified = f"{func.namespace}::{name}" if func.namespace != "aten" else name
            read = args[1:] if name in _OVERWRITING else args
            moved = _bytes(tree_leaves((read, kwargs))) + _bytes(tree_leaves(result))
            kind = _kind(func.namespace, name)
            flops = 0 if kind == "other" else _flops(func, args, kwargs, result)
            self.calls.append(Launch(qualified, kind, moved, flops))
        return result

    def _inner(self, namespace: str, name: str, args: tuple[Any, ...]) -> list[Launch] | None:
        """What an op of ours calls; ``None`` where it is a launch by itself."""
        if namespace != "glimt":
            return None
        op = find(name)
        candidate = _on_gpu(op, args, self.arch)
        if candidate.impl in _KERNELS:
            return None
        with Count(self.arch) as inside:
            candidate.run(*args)
        return inside.calls

    @property
    def launches(self) -> int:
        return len(self.calls)

    def traffic_bytes(self, *kinds: str) -> int:
        """Bytes moved by calls of these kinds; of all where none is named."""
        wanted = kinds or KINDS
        return sum(call.num_bytes for call in self.calls if call.kind in wanted)

    def flops(self) -> int:
        """Of matrices and attention. Raises ValueError for an operator of which it is not known."""
        unknown = sorted({call.name for call in self.calls if call.flops is None})
        if unknown:
            raise ValueError(f"FLOPs are not known of {', '.join(unknown)}; add them to _FLOPS in {__name__}")
        return sum(call.flops or 0 for call in self.calls)

    def by_name(self) -> list[tuple[str, int, int]]:
        """(operator, launches, bytes), the most bytes first."""
        number: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        for call in self.calls:
            number[call.name] += 1
            moved[call.name] += call.num_bytes
        return [(name, number[name], moved[name]) for name, _ in moved.most_common()]


def _on_gpu(op: Op, args: tuple[Any, ...], arch: int) -> Candidate:
    """Who would run this on a GPU that has Triton."""
    case = op.case(args)._replace(device="cuda", arch=arch, grad=False)
    for candidate in op.candidates:
        reasons = [*unsupported_reasons(candidate, case), *candidate.reluctance(case)]
        if not [reason for reason in reasons if reason != triton_env.ABSENT]:
            return candidate
    return op.candidates[-1]


def _kind(namespace: str, name: str) -> str:
    if name.startswith(_ATTENTION):
        return "attention"
    if (namespace == "aten" and name in _MATRIX) or (namespace == "glimt" and name.startswith(_MATRIX_OPS)):
        return "matrix"
    return "other"


def _convolution_flops(x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Every tap at every pixel of ``x [B, C, F, H, W]``, those that see nothing but zeros among them."""
    return 2 * weight.numel() * (x.numel() // max(1, x.shape[1]))


# Of our ops, from their arguments.
_FLOPS: dict[str, Callable[..., int]] = {
    "linear": lambda x, weight, *rest: 2 * x.numel() * weight.shape[0],
    "attention": lambda q, k, v, *rest: 2 * q.shape[:3].numel() * k.shape[1] * (q.shape[3] + v.shape[3]),
    "causal_conv3d": _convolution_flops,
    "causal_conv3d_norm": _convolution_flops,
    "upsample_conv": _convolution_flops,
}


def _flops(func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> int | None:
    packet = func.overloadpacket
    if func.namespace == "glimt":
        known = _FLOPS.get(packet.__name__)
        return None if known is None else known(*args)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **(kwargs or {}), out_val=result))
    if packet.__name__ == "linear":
        return _FLOPS["linear"](*args)
    return None


def _bytes(leaves: Iterable[Any]) -> int:
    """Of the distinct elements in memory: an expanded axis counts once."""
    total = 0
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            sizes = [size for size, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride or size == 0]
            total += torch.Size(sizes).numel() * leaf.element_size()
    return total

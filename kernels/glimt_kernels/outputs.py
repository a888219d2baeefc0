"""Outputs that a caller gives: what may be one, and how the results come into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Given = Tensor | Sequence[Tensor | None]


def place(given: Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where a kernel writes a result: in ``given`` if that lies together as the kernel writes, else in a new tensor,
    out of which ``Op.into`` copies it."""
    if given is not None and given.is_contiguous():
        return given
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def each(given: Given | None, count: int) -> list[Tensor | None]:
    """One for each of ``count`` results; None where none is given. A tensor alone is for the first."""
    some = [given] if isinstance(given, Tensor) else list(given or ())
    return [*some, *[None] * (count - len(some))]


@cache
def writes(run: Callable[..., Any]) -> bool:
    """Whether an implementation writes into what is given as ``out`` itself."""
    return "out" in inspect.signature(run).parameters


def listed(results: Any) -> list[Tensor]:
    """The tensors of a result, of which there may be one."""
    return [results] if isinstance(results, Tensor) else list(results)


def check(op: str, given: Sequence[Tensor | None], expected: Sequence[Tensor], device: torch.device) -> None:
    """Raise ValueError unless ``given`` are as the results ``expected``, whose device does not count."""
    if len(given) > len(expected):
        raise ValueError(f"{op} gives {len(expected)} tensors; {len(given)} were given as out")
    wrong = [
        f"{_name(given, index)} must be {list(right.shape)} {right.dtype} on {device}; found {list(mine.shape)} "
        f"{mine.dtype} on {mine.device}"
        for index, (mine, right) in enumerate(zip(given, expected, strict=False))
        if mine is not None and (mine.shape != right.shape or mine.dtype != right.dtype or mine.device != device)
    ]
    if wrong:
        raise ValueError(f"{op} cannot write there: {'; '.join(wrong)}")


def check_memory(op: str, given: Sequence[Tensor | None]) -> None:
    """Raise ValueError if any two elements of ``given`` lie, or may lie, at one place."""
    wrong = []
    for index, mine in enumerate(given):
        if mine is not None and overlaps_itself(mine):
            wrong.append(f"elements of {_name(given, index)} share memory (strides {list(mine.stride())})")
        elif mine is not None and any(other is not None and shares_memory(mine, other) for other in given[:index]):
            wrong.append(f"{_name(given, index)} shares memory with one before it")
    if wrong:
        raise ValueError(f"{op} cannot write there: {'; '.join(wrong)}; give each memory of its own")


def _name(given: Sequence[Tensor | None], index: int) -> str:
    return "out" if len(given) == 1 else f"out {index}"


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements are at one place, or their strides do not show that none are."""
    if x.numel() < 2:
        return False
    end = 0
    for step, size in sorted((step, size) for step, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if step <= end:
            return True
        end += step * (size - 1)
    return False


def shares_memory(x: Tensor, y: Tensor) -> bool:
    """Whether the stretches of memory from first to last element meet."""
    if not x.numel() or not y.numel() or x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return False
    (low, high), (first, last) = _stretch(x), _stretch(y)
    return low < last and first < high


def _stretch(x: Tensor) -> tuple[int, int]:
    begin = x.data_ptr()
    span = sum(step * (size - 1) for step, size in zip(x.stride(), x.shape, strict=True)) + 1
    return begin, begin + span * x.element_size()


def fill(given: Sequence[Tensor | None], results: Sequence[Tensor]) -> list[Tensor]:
    """The results, those for which a tensor is given in that tensor."""
    filled = []
    for mine, result in zip(each(given, len(results)), results, strict=True):
        filled.append(result if mine is None or mine is result else mine.copy_(result))
    return filled

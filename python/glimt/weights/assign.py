"""Checkpoint tensors into a module that was built without memory: strict, streaming, every mismatch in one error."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glimt.errors import CheckpointError
from glimt.suggest import did_you_mean
from glimt.weights.header import TensorEntry, shorten
from glimt.weights.reader import TensorSource, is_readable

Names = tuple[str, ...]  # all names that a module has for one tensor: tied weights have several
Fit = tuple[Names, TensorEntry]
_NAMED = 12  # names listed per kind of problem before they are only counted


class _MetaParameters(TorchFunctionMode):
    """Sends what parameters are made with to the meta device; small tables (``arange``, ``tensor``) stay real.

    Filling such parameters and scaling them by numbers is skipped: nobody sees the values, and for some of these on the
    meta device PyTorch imports its compiler (1.4 s and 190 MB, more than all else of loading the bundled model).
    """

    _MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.randint, torch.empty_strided})
    _RANDOM = frozenset({torch.rand, torch.randn})
    _FILLING = frozenset({Tensor.normal_, Tensor.uniform_})
    _SCALING = frozenset({torch.mul, torch.div, Tensor.mul, Tensor.div, Tensor.__mul__, Tensor.__truediv__})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._MAKERS | self._RANDOM and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if func in self._RANDOM and torch.device(kwargs["device"]).type == "meta":
            kwargs.pop("generator", None)
            return torch.empty(*args, **kwargs)
        subject = args[0] if args else kwargs.get("tensor")
        if isinstance(subject, Tensor) and subject.is_meta and self._is_vain(func, args):
            return subject
        return func(*args, **kwargs)

    def _is_vain(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether ``func`` gives its first tensor back with other values and nothing else changed."""
        if func in self._SCALING:
            return len(args) == 2 and isinstance(args[1], (int, float))
        return func in self._FILLING or getattr(func, "__module__", None) == "torch.nn.init"


def meta_parameters() -> AbstractContextManager[object]:
    """A context in which modules are built with parameters that take no memory, for :func:`load_into` to fill.

    Unlike ``torch.device("meta")`` it leaves buffers computed from ``arange`` or constants real: they are in no file.
    """
    return _MetaParameters()


def load_into(
    module: nn.Module,
    source: TensorSource,
    *,
    what: str,
    names: Mapping[str, str] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_in_fp32: Collection[str] = (),
    ignore: Collection[str] = (),
) -> nn.Module:
    """Give every parameter and persistent buffer of ``module`` its tensor of ``source``; returns the module.

    Args:
        module: built under :func:`meta_parameters` (or anything whose tensors may be replaced).
        what: how errors call the component, as in ``"transformer"``.
        names: module's name of each tensor by its name in the file; names not in it are the same in both.
        dtype: of floating tensors; None keeps the file's. Equal dtypes on the CPU are not copied.
        keep_in_fp32: a floating tensor with one of these among the dotted parts of its name becomes float32.
        ignore: a tensor of the file with one of these among the dotted parts of its name may be extra.

    Raises:
        CheckpointError: missing, extra, mis-shaped tensors and unreadable dtypes in one error; after that, when all
            fits, one error that names every tensor with NaN or infinity.
    """
    fits, problems = match(module, source.entries, names, ignore)
    if problems := problems or _tie_problems(fits, source):
        raise CheckpointError(*(f"{what}: {problem}" for problem in problems))
    broken: list[str] = []
    for group, entry in dict(fits).items():
        tensor = source.tensor(entry.name)
        broken += _nonfinite_problem(entry, tensor)
        target = _target_dtype(group[0], tensor, dtype, keep_in_fp32)
        _assign(module, group, tensor.to(device=device, dtype=target))
        del tensor
        source.release(entry.name)
    broken += [f"{name!r} is in no file and not computed by the module" for name in _left_on_meta(module)]
    if broken:
        raise CheckpointError(*(f"{what}: {problem}" for problem in shorten(broken, _NAMED)))
    return module


def match(
    module: nn.Module, entries: Mapping[str, TensorEntry], names: Mapping[str, str], ignore: Collection[str]
) -> tuple[list[Fit], list[str]]:
    """Which tensor of the files goes where, and everything that is missing, extra or misshapen; reads headers only.

    ``names`` and ``ignore``: see :func:`load_into`. A tensor that the module knows by several names may be in the files
    under more than one of them.
    """
    slots = _slots(module)
    given, twice = _renamed(entries, names)
    fits = [(group, given[name]) for group in slots for name in group if name in given]
    wanted = {name for group in slots for name in group}
    missing = [group[0] for group in slots if not any(name in given for name in group)]
    extra = [name for name in given if name not in wanted and not _has_part(name, ignore)]
    wrong = [text for group, entry in fits if (text := _misfit(entry, slots[group]))]
    return fits, [
        *twice,
        *_report("missing", missing, len(slots), extra),
        *_report("extra", [given[name].name for name in extra], len(given), ()),
        *shorten(wrong, _NAMED),
    ]


def scan(source: TensorSource, fits: Iterable[Fit]) -> list[str]:
    """Every tensor with NaN or infinity among those that :func:`match` found; one at a time is in memory."""
    broken: list[str] = []
    for _, entry in fits:
        broken += _nonfinite_problem(entry, source.tensor(entry.name))
        source.release(entry.name)
    return shorten(broken, _NAMED)


def _nonfinite_problem(entry: TensorEntry, tensor: Tensor) -> list[str]:
    return [f"tensor {entry.name!r} has NaN or infinite values"] if has_nonfinite(tensor) else []


def has_nonfinite(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity; one pass at memory speed, as both survive minimum and maximum."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return False
    low, high = torch.aminmax(tensor)
    return not (bool(torch.isfinite(low)) and bool(torch.isfinite(high)))


def _slots(module: nn.Module) -> dict[Names, Tensor]:
    """The tensors that a state dict of the module has."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return {tuple(group): tensors[key] for key, group in names.items()}


def _renamed(entries: Mapping[str, TensorEntry], names: Mapping[str, str]) -> tuple[dict[str, TensorEntry], list[str]]:
    given: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, entry in entries.items():
        known = given.setdefault(names.get(name, name), entry)
        if known is not entry:
            problems.append(f"tensors {known.name!r} and {name!r} are two names of one tensor of the model")
    return given, shorten(problems, _NAMED)


def _tie_problems(fits: Iterable[Fit], source: TensorSource) -> list[str]:
    """Tensors that the model shares must be equal where the file has them under several names."""
    problems = []
    firsts: dict[Names, str] = {}
    for group, entry in fits:
        first = firsts.setdefault(group, entry.name)
        if entry.name == first:
            continue
        if not torch.equal(source.tensor(first), source.tensor(entry.name)):
            problems.append(f"tensors {first!r} and {entry.name!r} are one in the model and differ in the file")
        source.release(entry.name)
    return shorten(problems, _NAMED)


def _report(kind: str, names: list[str], of: int, candidates: Iterable[str]) -> list[str]:
    if not names:
        return []
    near = list(candidates)[:400]  # comparing names is quadratic; more of them would take seconds
    listed = [f"tensor {name!r} is {kind}{did_you_mean(name, near)}" for name in names[: _NAMED + 1]]
    if len(names) > _NAMED + 1:
        return [*listed[:_NAMED], f"{len(names) - _NAMED} more tensors are {kind} ({len(names)} of {of} in all)"]
    return listed


def _misfit(entry: TensorEntry, slot: Tensor) -> str:
    if entry.shape != tuple(slot.shape):
        return f"tensor {entry.name!r} has shape {list(entry.shape)} in the file, {list(slot.shape)} in the model"
    if not is_readable(entry.dtype):
        return f"tensor {entry.name!r} is stored as {entry.dtype}, which cannot be read; use BF16, F16 or F32"
    if slot.is_floating_point() != (entry.dtype in ("F16", "BF16", "F32", "F64")):
        return f"tensor {entry.name!r} is stored as {entry.dtype}, the model has {str(slot.dtype).split('.')[-1]}"
    return ""


def _has_part(name: str, parts: Collection[str]) -> bool:
    return any(part in parts for part in name.split("."))


def _target_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None, keep_in_fp32: Collection[str]) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    if _has_part(name, keep_in_fp32):
        return torch.float32
    return dtype or tensor.dtype


def _assign(module: nn.Module, group: Names, tensor: Tensor) -> None:
    parameter = nn.Parameter(tensor, requires_grad=False)  # one object for all names: ties stay ties
    for name in group:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = parameter
        else:
            owner._buffers[leaf] = tensor


def _left_on_meta(module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if tensor.is_meta]

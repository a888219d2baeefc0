"""Which implementation runs each op: as a plan foresees it, and as a run recorded it. Runs none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from glimt.errors import RequestError
from glimt.plan.value import OpChoice

if TYPE_CHECKING:
    from glimt.models.wan.calls import KernelCall
    from glimt_kernels.dispatch import Case, Choice


def by_op(choices: Iterable[Choice]) -> tuple[OpChoice, ...]:
    """One entry an op, in the order in which they come."""
    grouped: dict[str, list[Choice]] = {}
    for choice in {id(choice): choice for choice in choices}.values():
        grouped.setdefault(choice.op, []).append(choice)
    return tuple(_op_choice(op, mine) for op, mine in grouped.items())


def _op_choice(op: str, choices: list[Choice]) -> OpChoice:
    ran, passed, cases = {choice.impl for choice in choices}, dict[str, None](), dict[str, None]()
    others: dict[str, dict[str, None]] = {}
    for choice in choices:
        cases[_named(choice.case)] = None
        for impl, reasons in choice.others().items():
            others.setdefault(impl, {}).update(dict.fromkeys(reasons))
        for impl, reasons in choice.passed_over().items():
            if impl in _meant_for(choice.case):
                passed[f"{op}: {impl} cannot run here: {'; '.join(reasons)}"] = None
    return OpChoice(
        op,
        " + ".join(candidate.impl for candidate in choices[0].among if candidate.impl in ran),
        tuple(passed),
        tuple(cases),
        {impl: tuple(reasons) for impl, reasons in others.items()},
    )


def _named(case: Case) -> str:
    dtype = "several dtypes" if case.dtype is None else str(case.dtype).removeprefix("torch.")
    return f"{case.device} sm_{case.arch} {dtype}" if case.arch else f"{case.device} {dtype}"


def _meant_for(case: Case) -> tuple[str, ...]:
    """Implementations that are made for such a device and dtype: of another nobody will say that it was passed over."""
    import torch

    if case.device != "cpu":
        return ("cuda", "triton")
    return ("native", "onednn") if case.dtype == torch.float32 else ()


def foreseen(
    calls: Iterable[KernelCall], pixels: Iterable[KernelCall], device: str, dtype: str, *, vae: bool = True
) -> tuple[OpChoice, ...]:
    """What runs on ``device``.

    Args:
        calls: of the networks in inference; exact runs call PyTorch instead. ``pixels``: those that every run makes.
        vae: whether the autoencoder runs; a tiny decoder may stand in for it.

    Raises:
        RequestError: an implementation that the environment asks for cannot run one of them.
    """
    from glimt_kernels import UnsupportedError

    try:
        return by_op(_choices(calls, pixels, device, dtype, vae))
    except UnsupportedError as error:
        raise RequestError(str(error)) from error


def _choices(
    calls: Iterable[KernelCall], pixels: Iterable[KernelCall], device: str, dtype: str, vae: bool
) -> Iterator[Choice]:
    import torch

    from glimt.models.wan import vae_ops
    from glimt_kernels import wants_references
    from glimt_kernels.dispatch import Case, arch_of, choose, find
    from glimt_kernels.linear import onednn
    from glimt_kernels.tuned import agreed

    place = torch.device(device)
    case = Case(place.type, getattr(torch, dtype), arch=arch_of(place))
    if wants_references():
        yield choose("linear", case, "aten")
        calls = ()
    for op, args in (*calls, *pixels):
        yield choose(op, find(op).case(args, place))
    yield onednn.convolutions(case)
    for op in vae_ops.kernels_used(case, vae=vae):
        yield choose(op, case._replace(tuned=agreed(op, place, case.dtype)))

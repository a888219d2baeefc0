"""Which implementation of an op runs: the only place where that is decided.

An op has one contract (``<op>/api.py``) and several candidates, best first, the last being the reference, which runs
everywhere. A candidate that cannot run a call says all the reasons why; the first without a reason is chosen.
Overrides, strongest first: the ``impl`` argument of a call, then :func:`references_only`, then the environment variable
``GLIMT_IMPL_<OP>``. An override that cannot run is an error with its reasons, never a silent fallback. Without one,
what ``glimt tune`` found fastest for such calls on this device goes first (:mod:`glimt_kernels.tuned`), if it can run.
What was chosen inside :func:`recording` is kept, with the reasons of every other candidate.

Under ``torch.compile``, ``torch.export`` and fake or meta tensors a call becomes the node ``glimt::<op>``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimt_kernels import outputs, tuned

Run = Callable[..., Any]


class UnsupportedError(ValueError):
    """The implementation that was asked for cannot run this call, or there is none of that name."""


class Case(NamedTuple):
    """What a choice may depend on.

    Attributes:
        device: type of the tensors' device ("cpu", "cuda"), or "mixed".
        dtype: the tensors' dtype, or None when they differ.
        grad: whether a gradient is wanted through this call.
        arch: ten times the CUDA device's compute capability (89 for sm_89), 0 where there is none or it is not known.
        sizes: what else the op's choice depends on, as its ``sizes`` function gives it; empty where not known.
        tuned: the implementation that ``glimt tune`` found fastest for such calls; empty where it found none.
    """

    device: str
    dtype: torch.dtype | None
    grad: bool = False
    arch: int = 0
    sizes: tuple[int, ...] = ()
    tuned: str = ""


CPU_FLOAT32 = Case("cpu", torch.float32)


@dataclass(frozen=True)
class Candidate:
    """One implementation of one op.

    Attributes:
        op: name of the op.
        impl: "reference", "native", "cuda", "triton", or the name of a library.
        run: called with the op's arguments in schema order.
        reasons: every reason why it cannot run a case; empty if it can.
        reluctance: every reason why it runs a case only where it is asked for by name.
    """

    op: str
    impl: str
    run: Run
    reasons: Callable[[Case], Sequence[str]] = lambda case: ()
    reluctance: Callable[[Case], Sequence[str]] = lambda case: ()


@dataclass(frozen=True)
class Op:
    """An op with its candidates, best first. Calling it chooses one and runs it."""

    name: str
    candidates: tuple[Candidate, ...]
    node: Callable[..., Any]
    fake: Run
    sizes: Callable[..., tuple[int, ...]] | None = None

    def case(self, args: Sequence[Any], on: torch.device | None = None) -> Case:
        """The case of a call with these arguments; ``on``: where meta tensors are thought to be."""
        case = case_of([arg for arg in args if isinstance(arg, Tensor)])
        if on is not None:
            case = case._replace(device=on.type, arch=arch_of(on))
        best = tuned.lookup(self.name, args, on)
        if self.sizes is None:
            return case._replace(tuned=best) if best else case
        return case._replace(sizes=self.sizes(*args), tuned=best)

    def __call__(self, *args: Any, impl: str | None = None) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if impl is None and _is_traced(tensors):
            run = self.candidates[-1].run if _wants_grad(tensors) else self.node
            return run(*args)
        return select(self.name, self.case(args), impl).run(*args)

    def into(self, out: outputs.Given, *args: Any, impl: str | None = None) -> Any:
        """The same with the results in ``out``: a tensor is the first of them, a sequence holds one or None for each.

        An ``out`` has the shape, dtype and device of the result and any strides. A candidate with a parameter ``out``
        writes there itself, if no tensor of ``args`` lies there; else what it gives is copied.

        Raises:
            ValueError: an ``out`` of another shape, dtype or device, or whose elements share memory.
        """
        given = [out] if isinstance(out, Tensor) else list(out)
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        present = [mine for mine in given if mine is not None]
        if impl is None and _is_traced([*present, *tensors]):
            results = self(*args)
            outputs.check(self.name, given, outputs.listed(results), tensors[0].device)
        else:
            shapes = (torch.empty_like(arg, device="meta") if isinstance(arg, Tensor) else arg for arg in args)
            outputs.check(self.name, given, outputs.listed(self.fake(*shapes)), tensors[0].device)
            outputs.check_memory(self.name, given)
            run = select(self.name, self.case(args), impl).run
            apart = not any(outputs.shares_memory(mine, arg) for mine in present for arg in tensors)
            results = run(*args, out=out) if apart and outputs.writes(run) else run(*args)
        filled = outputs.fill(given, outputs.listed(results))
        return filled[0] if isinstance(results, Tensor) else tuple(filled)


@dataclass(frozen=True)
class Choice:
    """What runs the calls of one case.

    Attributes:
        candidate: the one chosen, of ``among``, best first. ``case``: of the calls.
        wanted: the implementation that was asked for by name, whatever the order; empty if none was.
    """

    candidate: Candidate
    case: Case
    among: tuple[Candidate, ...]
    wanted: str = ""

    @property
    def op(self) -> str:
        return self.candidate.op

    @property
    def impl(self) -> str:
        return self.candidate.impl

    def others(self) -> dict[str, tuple[str, ...]]:
        """Why each other candidate does not run: why it cannot, else why it comes after the one chosen."""
        return {other.impl: self._reasons(other) for other in self.among if other is not self.candidate}

    def _reasons(self, other: Candidate) -> tuple[str, ...]:
        reasons = unsupported_reasons(other, self.case)
        if self.wanted:
            return reasons or (f"{self.wanted} was asked for",)
        reasons += tuple(other.reluctance(self.case))
        if self.case.tuned == self.impl:
            return reasons or (f"{self.impl} was found to be faster (glimt tune)",)
        return reasons or (f"{self.impl} goes first",)

    def passed_over(self) -> dict[str, tuple[str, ...]]:
        """Of those that stand before the one chosen, why they cannot run; none where one was asked for."""
        before = () if self.wanted else self.among[: self.among.index(self.candidate)]
        return {other.impl: why for other in before if (why := unsupported_reasons(other, self.case))}


Key = tuple[str, Case, str]
Record = dict[Key, Choice]

_OPS: dict[str, Op] = {}
_CHOSEN: Record = {}
_PLAIN = (Tensor, torch.nn.Parameter)
_REFERENCES_ONLY = ContextVar("references_only", default=False)
_RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def recording(record: Record | None = None) -> Iterator[Record]:
    """Inside, in this thread, every choice by which a call runs is kept in ``record``, once a case, in order.

    Calls inside a compiled graph or a captured one choose when it is made, not when it is run again. An inner
    recording takes over from an outer one; :func:`note` hands on what was kept elsewhere.
    """
    kept: Record = {} if record is None else record
    token = _RECORD.set(kept)
    try:
        yield kept
    finally:
        _RECORD.reset(token)


def is_recording() -> bool:
    """Whether this is inside :func:`recording`; never so to a graph that is being compiled, which would break here."""
    return not torch.compiler.is_compiling() and _RECORD.get() is not None


def note(*choices: Choice) -> None:
    """Keep choices that were made elsewhere in the record that is being made, if one is."""
    record = _RECORD.get()
    if record is not None:
        record.update({(choice.op, choice.case, choice.wanted): choice for choice in choices})


@contextmanager
def references_only(wanted: bool = True) -> Iterator[None]:
    """Inside, in this thread, every op runs its reference, and :func:`wants_references` tells others to do alike.

    ``wanted=False`` changes nothing.
    """
    token = _REFERENCES_ONLY.set(wanted or _REFERENCES_ONLY.get())
    try:
        yield
    finally:
        _REFERENCES_ONLY.reset(token)


def wants_references() -> bool:
    """Whether this is inside :func:`references_only`; never so to a graph that is being compiled, which would break
    here: its nodes choose when it is run, and then among references only."""
    return not torch.compiler.is_compiling() and _REFERENCES_ONLY.get()


def _wants_grad(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_traced(tensors: Sequence[Tensor]) -> bool:
    """Whether this call is recorded or simulated rather than computed: then it must be an op that PyTorch can see."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(type(tensor) not in _PLAIN or tensor.is_meta for tensor in tensors)


def case_of(tensors: Sequence[Tensor]) -> Case:
    """The case of a call with these tensor arguments."""
    first = tensors[0]
    device, dtype = first.device, first.dtype
    same_device = all(tensor.device == device for tensor in tensors)
    same_dtype = all(tensor.dtype == dtype for tensor in tensors)
    kind = device.type if same_device else "mixed"
    return Case(kind, dtype if same_dtype else None, _wants_grad(tensors), arch_of(device) if kind == "cuda" else 0)


@cache
def arch_of(device: torch.device) -> int:
    """``Case.arch`` of a device that is there."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unsupported_reasons(candidate: Candidate, case: Case) -> tuple[str, ...]:
    """Every reason why ``candidate`` cannot run ``case``."""
    reasons = list(candidate.reasons(case))
    if case.grad and candidate.impl != "reference":
        reasons.append("a gradient is wanted, which only the reference gives")
    if case.device == "mixed":
        reasons.append("the tensors are on different devices")
    return tuple(reasons)


def select(op: str, case: Case, impl: str | None = None) -> Candidate:
    """The candidate that runs ``case``, kept by :func:`recording`.

    Raises:
        UnsupportedError: the one asked for (by ``impl`` or the environment) is unknown or cannot; or none can.
    """
    found = choose(op, case, impl)
    record = _RECORD.get()
    if record is not None:
        record[op, case, found.wanted] = found
    return found.candidate


def choose(op: str, case: Case, impl: str | None = None) -> Choice:
    """The same choice as by :func:`select`, for one who only asks. Raises UnsupportedError as there."""
    wanted, variable = impl or "", ""
    if impl is None:
        if wants_references():
            wanted = "reference"
        else:
            variable = f"GLIMT_IMPL_{op.upper()}"
            wanted = os.environ.get(variable, "")
    key = (op, case, wanted)
    found = _CHOSEN.get(key)
    if found is None:
        try:
            found = _CHOSEN[key] = _choose(candidates(op), case, wanted)
        except UnsupportedError as error:
            if variable and wanted:
                raise UnsupportedError(f"{variable}={wanted}: {error}") from None
            raise
    return found


def built_in(op: str, case: Case) -> Candidate:
    """What runs ``case`` where nothing is asked for and nothing tuned."""
    return _choose(candidates(op), case._replace(tuned=""), "").candidate


def _choose(among: tuple[Candidate, ...], case: Case, wanted: str) -> Choice:
    if not wanted and case.tuned:
        best = [candidate for candidate in among if candidate.impl == case.tuned]
        if best and not unsupported_reasons(best[0], case):
            return Choice(best[0], case, among)
    able = among
    if wanted:
        names = [candidate.impl for candidate in among]
        able = tuple(candidate for candidate in among if candidate.impl == wanted)
        if not able:
            raise UnsupportedError(f"no implementation {wanted!r}; there are {', '.join(names)}")
    refused = []
    for candidate in able:
        reasons = unsupported_reasons(candidate, case)
        if not wanted:
            reasons += tuple(candidate.reluctance(case))
        if not reasons:
            return Choice(candidate, case, among, wanted)
        refused.append(f"{candidate.op}: {candidate.impl} cannot run here: {'; '.join(reasons)}")
    raise UnsupportedError("\n".join(refused))


def find(op: str) -> Op:
    """The op of that name. Raises UnsupportedError where there is none."""
    if op not in _OPS:
        raise UnsupportedError(f"no op {op!r}; there are {', '.join(sorted(_OPS))}")
    return _OPS[op]


def candidates(op: str) -> tuple[Candidate, ...]:
    """The candidates of ``op``, best first."""
    return find(op).candidates


def op_names() -> list[str]:
    """Of all ops, in order."""
    return sorted(_OPS)


def define(
    name: str,
    signature: str,
    implementations: Sequence[Candidate],
    fake: Run,
    *,
    differentiable: bool = True,
    sizes: Callable[..., tuple[int, ...]] | None = None,
) -> Op:
    """Make the op ``glimt::<name>`` and return what calls it.

    Args:
        signature: in PyTorch's schema language, without the name: ``"(Tensor x, float eps) -> Tensor"``.
        implementations: candidates, best first, the reference last.
        fake: gives outputs of the right shape, dtype and strides without computing.
        sizes: from a call's arguments, the numbers that decide who can run it (a head_dim, say); for ``Case.sizes``.
    """
    qualified = f"glimt::{name}"
    torch.library.define(qualified, signature)
    torch.library.register_fake(qualified, fake)
    op = Op(name, tuple(implementations), getattr(torch.ops.glimt, name).default, fake, sizes)
    _OPS[name] = op

    def compute(*args: Any) -> Any:
        return select(name, op.case(args)._replace(grad=False)).run(*args)

    torch.library.impl(qualified, ("cpu", "cuda"), compute)
    if differentiable:
        _differentiate(qualified, op.candidates[-1].run)
    return op


def _differentiate(qualified: str, reference: Run) -> None:
    """Give the node a gradient: that of the reference, computed anew from the saved inputs."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*[arg for arg in inputs if isinstance(arg, Tensor)])
        ctx.others = [None if isinstance(arg, Tensor) else (arg,) for arg in inputs]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        with torch.enable_grad():
            args = [next(saved).detach().requires_grad_() if other is None else other[0] for other in ctx.others]
            outputs = reference(*args)
        tensors = [arg for arg, other in zip(args, ctx.others, strict=True) if other is None]
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        found = iter(torch.autograd.grad(outputs, tensors, grads, allow_unused=True))
        return tuple(next(found) if other is None else None for other in ctx.others)

    torch.library.register_autograd(qualified, backward, setup_context=save)

"""A run that has gone wrong stops at once, and says where: NaN, infinity, or latents without any variation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from glimt.errors import NonFiniteError

FLAT_STD = 1e-6
_ADVICE = "Try dtype='float32'; if it happens there too, the checkpoint is damaged or its config does not belong to it"


def check_latents(x0: Tensor, step: int, num_steps: int, find: Callable[[], str]) -> None:
    """Raise unless ``x0`` is finite and not flat. Waits for the device.

    Args:
        find: looks for the operation that first went wrong, and names it; called only when something is wrong.

    Raises:
        NonFiniteError: names the step, the operation and what to do.
    """
    std = float(x0.float().std()) if x0.numel() > 1 else 1.0
    if std > FLAT_STD and std != float("inf"):
        return
    where = f"denoise: step {step} of {num_steps}"
    if std <= FLAT_STD:
        raise NonFiniteError(f"{where} gave flat latents (standard deviation {std:.1e}). {_ADVICE}.")
    bad = int((~torch.isfinite(x0)).sum())
    raise NonFiniteError(f"{where} gave {bad} of {x0.numel()} values that are NaN or infinite; {find()}. {_ADVICE}.")


def check_frames(pixels: Tensor, index: int) -> None:
    """Raise NonFiniteError unless decoded pixels are finite."""
    if not bool(torch.isfinite(pixels.sum())):
        raise NonFiniteError(f"decode: frame {index} or one soon after it holds NaN or infinite pixels. {_ADVICE}.")


def check_encoded(latents: Tensor) -> None:
    """Raise NonFiniteError if encoded latents [1, C, f, h, w] hold NaN or infinity."""
    finite = latents.isfinite().all(dim=1).flatten(2).all(dim=2)[0]
    if not bool(finite.all()):
        index = int(finite.int().argmin())
        raise NonFiniteError(f"encode: latent frame {index} holds NaN or infinity. {_ADVICE}.")


def first_nonfinite(module: nn.Module, run: Callable[[], Tensor]) -> str:
    """Run once more and name the first submodule whose output is not finite though its inputs were."""
    found: list[str] = []
    with _watched(module, found):
        out = run()
    if found:
        return f"the first such output is that of '{found[0]}' ({_kind(module, found[0])})"
    if bool(torch.isfinite(out).all()):
        return "the network's own output is finite, so it is the solver's step or the guidance that overflowed"
    return "no single module's output shows where"


def _kind(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name)).__name__


@contextmanager
def _watched(module: nn.Module, found: list[str]) -> Iterator[None]:
    """Note the names of modules with non-finite outputs, in this thread: others may use the module meanwhile."""
    mine = threading.get_ident()

    def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if threading.get_ident() == mine and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    handles = [leaf.register_forward_hook(hook_for(name)) for name, leaf in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

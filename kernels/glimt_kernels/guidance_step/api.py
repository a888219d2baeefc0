"""guidance_step: classifier-free guidance, the solver's step and the estimate of the video in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimt_kernels import outputs
from glimt_kernels.dispatch import Candidate, Case, _is_traced, define, select
from glimt_kernels.guidance_step import reference, triton
from glimt_kernels.triton_env import DTYPES, reluctance, triton_reasons


def guidance_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | float | None,
    coefficients: Tensor,
    history: Sequence[Tensor] = (),
    *,
    out: Sequence[Tensor] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, ...]:
    """``v = uncond + guidance (cond - uncond)``, then for each row ``(a, b, c_0, c_1, ...)`` of ``coefficients`` the
    output ``a latents + b v + sum_i c_i history_i``.

    Every step of a linear solver is such rows. With x0 = x - sigma v, and sigma' the next noise level:

    - the estimate of the video, for any solver: ``(1, -sigma)``;
    - Euler: ``(1, sigma' - sigma)``;
    - UniPC with history (last corrected latents, x0 of the last step, x0 of the one before): a row for the corrected
      latents and one for the next ones, which are corrected latents and estimates combined again;
    - DMD with history (fresh noise,): ``(1 - sigma', -(1 - sigma') sigma, sigma')``.

    The numbers are read on the device when the kernel runs: no step waits for it, and a captured CUDA graph replays
    with the numbers that then stand in ``coefficients`` and ``guidance``.

    Args:
        latents: any shape, float32 (float64 in the reference).
        cond, uncond: velocities of that shape, floating; without ``uncond``, v is ``cond``.
        guidance: one number, with ``uncond`` and only then; a tensor [] or [1] where a graph is to be replayed (a
            float is written into a new one).
        coefficients: [outputs, 2 + len(history)], float32 or float64, on the device of ``latents``; used in float32.
        history: tensors of the shape and dtype of ``latents``.
        out: as many contiguous tensors of the shape and dtype of ``latents`` as there are outputs, which then become
            these; they may be inputs, but not each other.
        impl: "triton" or "reference" instead of the chosen implementation.

    Returns:
        The outputs, in the order of the rows: contiguous, the dtype of ``latents``. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, guidance without ``uncond`` or the other way round.
        UnsupportedError: ``impl`` cannot run this call.

    Source: classifier-free guidance (arXiv:2207.12598); UniPC (arXiv:2302.04867); DMD2 (arXiv:2405.14867).
    """
    if (uncond is None) != (guidance is None):
        raise ValueError("guidance_step takes uncond and guidance together, or neither")
    if guidance is not None and not isinstance(guidance, Tensor):
        guidance = torch.full((), guidance, dtype=torch.float32, device=latents.device)
    _check(latents, cond, uncond, guidance, coefficients, history, out)
    one = [None if t is None else t.detach() for t in (latents, cond, uncond, guidance, coefficients)]
    past = [tensor.detach() for tensor in history]
    if out is None:
        return tuple(OP(*one, past, impl=impl))
    tensors = [t for t in (*one, *past, *out) if t is not None]
    if impl is None and _is_traced(tensors):
        for target, result in zip(out, OP(*one, past), strict=True):
            target.copy_(result)
    else:
        outputs.check_memory("guidance_step", out)
        select("guidance_step", OP.case(one), impl).run(*one, past, [tensor.detach() for tensor in out])
    return tuple(out)


def _check(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor],
    out: Sequence[Tensor] | None,
) -> None:
    wrong = [
        f"{name} is {list(tensor.shape)}, latents are {list(latents.shape)}"
        for name, tensor in _named(cond=(cond,), uncond=(uncond,), history=history, out=out or ())
        if tensor.shape != latents.shape
    ]
    wrong += [
        f"{name} is {tensor.dtype}, latents are {latents.dtype}"
        for name, tensor in _named(history=history, out=out or ())
        if tensor.dtype != latents.dtype
    ]
    everything = _named(
        cond=(cond,),
        uncond=(uncond,),
        guidance=(guidance,),
        coefficients=(coefficients,),
        history=history,
        out=out or (),
    )
    wrong += [
        f"{name} is on {tensor.device}, latents are on {latents.device}"
        for name, tensor in everything
        if tensor.device != latents.device
    ]
    if guidance is not None and guidance.numel() != 1:
        wrong.append(f"guidance is {list(guidance.shape)}, not one number")
    if coefficients.dim() != 2 or not coefficients.shape[0] or coefficients.shape[1] != 2 + len(history):
        wrong.append(f"coefficients are {list(coefficients.shape)}, not [outputs, 2 + {len(history)}]")
    elif out is not None and len(out) != coefficients.shape[0]:
        wrong.append(f"{len(out)} tensors to write to, but {coefficients.shape[0]} rows of coefficients")
    wrong += [f"{name} is not contiguous" for name, tensor in _named(out=out or ()) if not tensor.is_contiguous()]
    if wrong:
        raise ValueError("guidance_step: " + "; ".join(wrong))


def _named(**groups: Sequence[Tensor | None]) -> list[tuple[str, Tensor]]:
    """The tensors that there are, each with its name."""
    return [
        (f"{name} {i}" if name in ("history", "out") else name, tensor)
        for name, group in groups.items()
        for i, tensor in enumerate(group)
        if tensor is not None
    ]


def _fake(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor],
) -> list[Tensor]:
    return [
        torch.empty(latents.shape, dtype=latents.dtype, device=latents.device) for _ in range(coefficients.shape[0])
    ]


def _reference(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor],
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    results = reference.guidance_step(latents, cond, uncond, guidance, coefficients, history)
    if out is None:
        return results
    return [target.copy_(result) for target, result in zip(out, results, strict=True)]


def _sizes(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    history: Sequence[Tensor] = (),
) -> tuple[int, ...]:
    """Whether the latents are float32, whether the velocities are what Triton takes, outputs, history."""
    velocities = all(v is None or v.dtype in DTYPES for v in (cond, uncond))
    return int(latents.dtype == torch.float32), int(velocities), coefficients.shape[0], coefficients.shape[1] - 2


def _triton_reasons(case: Case) -> list[str]:
    narrow, velocities, outputs, history = case.sizes or (int(case.dtype in (None, torch.float32)), 1, 1, 0)
    # Coefficients of float64 are taken, so the tensors' common dtype says nothing.
    reasons = triton_reasons(case._replace(dtype=torch.float32))
    if not narrow:
        reasons.append("it computes float32, the latents are of another dtype")
    if not velocities:
        reasons.append("it takes velocities of float32, float16 and bfloat16")
    if outputs > triton.OUTPUTS or history > triton.HISTORIES:
        reasons.append(
            f"it gives up to {triton.OUTPUTS} outputs from up to {triton.HISTORIES} tensors of history; "
            f"asked for are {outputs} from {history}"
        )
    return reasons


OP = define(
    "guidance_step",
    "(Tensor latents, Tensor cond, Tensor? uncond, Tensor? guidance, Tensor coefficients, Tensor[] history) "
    "-> Tensor[]",
    [
        Candidate("guidance_step", "triton", triton.guidance_step, _triton_reasons, reluctance),
        Candidate("guidance_step", "reference", _reference),
    ],
    _fake,
    differentiable=False,
    sizes=_sizes,
)

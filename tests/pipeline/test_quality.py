"""Quality classes: exact is PyTorch's own bits, equivalent stays beside them, and a plan names what really runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glimt.engine import Engine
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt.pipeline.events import StepState
from glimt.request import GenerateRequest
from glimt.sampling.guidance import guide
from glimt.sampling.noise import initial_latents
from glimt.sampling.solvers import make_solver
from glimt_kernels import dispatch
from models import tiny

FORMS = {"t2v": {"height": 32, "width": 48}, "ti2v": {"height": 64, "width": 96}}


def asked(form: str) -> GenerateRequest:
    return GenerateRequest(
        "a red ball", "slowly", num_frames=17, num_inference_steps=3, guidance_scale=3.0, seed=1, **FORMS[form]
    )


def decoded(vae: WanVae, x: torch.Tensor, chunk: int) -> np.ndarray:
    cache = CausalCache()
    parts = [vae.decode_chunk(part, cache) for part in vae.denormalize(x).split(chunk, dim=2)]
    pixels = torch.cat(parts, dim=2)[0].permute(1, 2, 3, 0)
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def by_hand(engine: Engine, request: GenerateRequest) -> np.ndarray:
    """The modules called with gradients enabled, which leaves every operation to PyTorch, and raw prompts."""
    plan, parts = engine.plan(request), engine._components
    network, timesteps = parts.transformer(0), torch.tensor([*plan.schedule.timesteps, 0.0])
    with torch.enable_grad():
        texts = parts.embed_texts((request.prompt, request.negative_prompt))
        solver, text, times = (
            make_solver(plan.schedule, 1),
            network.prepare_text(texts),
            network.prepare_time(timesteps),
        )
        x = solver.start(initial_latents(plan.latents.shape(1), 1))
        for i in range(plan.num_steps):
            out = network(x, times.at(torch.tensor([[i]])), text)
            x, _ = solver.step(guide(out[:1], out[1:], 3.0), i, x)
        return decoded(parts.vae(), x, plan.decode.chunk)


@pytest.mark.parametrize("form", FORMS)
def test_exact_gives_the_bits_of_the_modules_run_by_pytorch_alone(form: str) -> None:
    with Engine.load(tiny.folder(form), device="cpu", quality="exact") as engine:
        exact = engine.generate(asked(form)).frames
        assert np.array_equal(exact, by_hand(engine, asked(form)))
    with Engine.load(tiny.folder(form), device="cpu") as engine:
        equivalent = engine.generate(asked(form)).frames
    assert np.abs(exact.astype(int) - equivalent).max() <= 1


class Calls(TorchDispatchMode):
    """Names of the operations PyTorch is asked for, on operands of one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == self.dtype:
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{}, {"quality": "exact"}, {"dtype": "bfloat16"}, {"dtype": "float16", "strict": True}]
)
def test_the_plan_names_the_operations_that_run_and_no_others(settings: dict[str, Any]) -> None:
    request = GenerateRequest(**{**asked("t2v").to_dict(), "preview_every": 3})
    ran: dict[str, str] = {}
    select = dispatch.select

    def spy(op: str, case: Any, impl: str | None = None) -> Any:
        found = select(op, case, impl)
        ran[op] = found.impl
        return found

    with Engine.load(tiny.folder("t2v"), device="cpu", **settings) as engine:
        plan = engine.plan(request)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "select", spy)
            for event in engine.stream(request):
                assert not dispatch.wants_references()
                if isinstance(event, StepState):
                    event.preview()
        with Calls(getattr(torch, plan.dtype)) as calls:  # half-precision models keep a few layers in float32
            engine.generate(request)
    named = dict(plan.implementations)
    libraries = {named["linear"], named.pop("convolution")}
    if "linear" not in ran:  # exact runs call PyTorch's own
        ran["linear"] = "aten"
    assert ran == named and plan.fallbacks == ()
    assert libraries == {"onednn" if any(name.startswith("mkldnn") for name in calls.names) else "aten"}
    assert not any("mkldnn" in name for name in calls.names) or settings == {}

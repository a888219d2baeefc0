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
from glimt.pipeline.events import StageEvent, StepState
from glimt.request import GenerateRequest
from glimt.sampling.guidance import guide
from glimt.sampling.noise import initial_latents
from glimt.sampling.solvers import make_solver
from glimt_kernels import dispatch, tuned
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
    ran: dict[str, set[str]] = {}
    choose = dispatch.choose

    def spy(op: str, case: Any, impl: str | None = None) -> Any:
        found = choose(op, case, impl)
        ran.setdefault(op, set()).add(found.impl)
        return found

    with Engine.load(tiny.folder("t2v"), device="cpu", **settings) as engine:
        plan = engine.plan(request)
        events = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "choose", spy)
            for event in engine.stream(request):
                events.append(event)
                assert not dispatch.wants_references() and not dispatch.is_recording()
                if isinstance(event, StepState):
                    event.preview()
        with Calls(getattr(torch, plan.dtype)) as calls:  # half-precision models keep a few layers in float32
            again = engine.generate(request)
    named = {op: set(impls.split(" + ")) for op, impls in plan.implementations.items()}
    libraries = {"onednn" if any(name.startswith("mkldnn") for name in calls.names) else "aten"}
    assert libraries == named["convolution"]
    assert {**ran, "convolution": libraries} == named and plan.fallbacks == ()
    assert not any("mkldnn" in name for name in calls.names) or settings == {}
    reports = [events[-1].report, again.report]
    assert all(report.implementations == plan.implementations for report in reports), "of a cached prompt too"
    assert events[-1].implementations == {} and events[-2].implementations == plan.implementations
    assert again.provenance.implementations == plan.implementations


@pytest.mark.parametrize("settings", [{}, {"quality": "exact"}])
def test_the_report_says_what_ran_where_that_is_not_what_was_planned(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices that were tuned, or overridden, after the plan was made: two runs at once, each with its own."""
    request = asked("t2v")
    with Engine.load(tiny.folder("t2v"), device="cpu", **settings) as engine:
        plan, tuned_one = engine.plan(request), engine.stream(request)
        plain = engine.stream(request)
        monkeypatch.setattr(tuned, "lookup", lambda op, args, on=None: "reference" if op == "ada_norm" else "")
        report = [event for event in tuned_one if isinstance(event, StageEvent)][-1].report
        monkeypatch.undo()
        other = [event for event in plain if isinstance(event, StageEvent)][-1].report
    assert report is not None and other is not None
    if settings:
        assert report.implementations == {"linear": "aten", "convolution": "aten", "frames_to_uint8": "reference"}
        others = {op.op: op.others for op in report.ops}
        assert others["linear"]["onednn"] == others["convolution"]["onednn"] == ("aten was asked for",)
        assert others["frames_to_uint8"]["native"] == ("reference was asked for",)
        return
    assert plan.implementations["ada_norm"] == other.implementations["ada_norm"] == "native"
    assert report.implementations == {**plan.implementations, "ada_norm": "reference"}
    (norm,) = (op for op in report.ops if op.op == "ada_norm")
    assert norm.cases == ("cpu float32",) and set(norm.others) == {"native", "triton"}
    assert norm.others["native"] == ("reference was found to be faster (glimt tune)",)
    (attention,) = (op for op in report.ops if op.op == "attention")
    assert {"triton", "flash_attn", "cudnn", "flashinfer", "sage", "eight_bit", "reference"} == set(attention.others)
    assert all(attention.others.values())

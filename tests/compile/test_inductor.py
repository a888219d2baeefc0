"""The transformer's blocks compiled by Inductor: one graph each, without a break, and the frames that eager makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import glimt
from compile import exported
from glimt.compile.backends import inductor
from glimt.compile.graphs import TransformerGraph
from glimt.errors import CompileError, RequestError
from glimt_kernels import references_only, rms_norm
from glimt_kernels.dispatch import recording

REQUEST = glimt.GenerateRequest(
    prompt="a red ball rolls left over a green floor", seed=7, height=32, width=32, num_frames=5, num_inference_steps=2
)


@pytest.mark.slow
def test_same_frames_by_the_same_kernels() -> None:
    """Compiled, the float32 frames are within one level of those that are not; no graph breaks (``fullgraph``)."""
    torch._dynamo.reset()
    counters.clear()
    eager = glimt.Engine.load(device="cpu").generate(REQUEST)
    compiled = glimt.Engine.load(device="cpu", backend="inductor").generate(REQUEST)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] > 0
    difference = np.abs(eager.frames.astype(int) - compiled.frames.astype(int))
    assert difference.max() <= 1 and difference.mean() <= 0.01
    assert compiled.report.implementations == eager.report.implementations
    assert compiled.provenance.config["backend"] == "inductor"


@pytest.mark.parametrize("name", exported.MODELS)
def test_no_variant_breaks_its_graph(name: str) -> None:
    """Traced by Dynamo, run by nobody's compiler: what is traced gives the same bits."""
    torch._dynamo.reset()
    timesteps = "frame" if name in ("ti2v", "bundled") else "sample"
    model = exported.in_precision(exported.transformer(name), "fp32")
    spec = TransformerGraph(model, prompts=2, timesteps=timesteps)
    tensors = exported.feed(spec, (2, 3, 2))
    expected = exported.eager(spec, tensors)
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    with torch.no_grad():
        found = spec.module(*tensors.values())
    assert torch.equal(found, expected)


def test_exact_runs_are_not_compiled() -> None:
    with pytest.raises(RequestError) as caught:
        glimt.EngineConfig(backend="inductor", quality="exact")
    assert caught.value.fields == ("backend",)


def test_nodes_of_a_compiled_graph_heed_references_only() -> None:
    """The graph does not ask; the ops inside it do, each time it is run."""
    torch._dynamo.reset()
    op = torch.compile(lambda x, weight: rms_norm(x, weight, 1e-6), fullgraph=True, backend="eager")
    x, weight = torch.randn(3, 8), torch.ones(8)
    with torch.no_grad(), references_only(), recording() as made:
        op(x, weight)
    assert {choice.impl for choice in made.values()} == {"reference"}


def test_without_a_compiler_it_says_so_when_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(CompileError, match=r"needs a C\+\+ compiler"):
        inductor.compile_blocks(exported.transformer("t2v"))

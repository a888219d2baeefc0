"""The chooser: overrides, reasons, and the life of an op inside PyTorch's tracing, differentiation and threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import random
from torch import Tensor

import glimt_kernels as kernels
from glimt_kernels import dispatch
from glimt_kernels.causal_conv3d.call import channels_last

GPU_CASE = kernels.Case("cuda", torch.bfloat16)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, *, return_lse: bool = False) -> Any:
    return kernels.attention(q, k, v, scale=scale, bias=bias, return_lse=return_lse)


def attend_chunk(q: Tensor, sink_q: Tensor, k: Tensor, v: Tensor, spans: list[int], scale: float) -> Tensor:
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    return kernels.chunk_attention(q, k, v, pairs, sink_q=sink_q, scale=scale)


def multiply(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return kernels.linear(x, weight, bias, gate=gate, residual=residual)


def attend_levels(q: Tensor, q_scale: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, *rest: Any) -> Tensor:
    v_scale, block, scale, bias, dtype = rest
    return kernels.attention_8bit_levels(
        q, q_scale, k, k_scale, v, v_scale, block=block, scale=scale, bias=bias, dtype=dtype
    )


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    indices: Tensor,
    lengths: Tensor,
    block: int,
    scale: float,
    return_lse: bool = False,
) -> Any:
    mask = kernels.BlockMask(indptr, indices, block, 2, lengths)
    return kernels.sparse_attention(q, k, v, mask, scale=scale, return_lse=return_lse)


def convolve_and_norm(*args: Any) -> tuple[Tensor, Tensor | None]:
    """Without ``keep``, or with it as the last."""
    return kernels.causal_conv3d_norm(*args[:6], keep=args[6] if len(args) > 6 else True)


def calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """One small call of each op: the public function and its tensors and numbers."""
    theta = random(5, 4, seed=9)
    q, weight = random(2, 5, 3, 8), random(24, seed=1)
    rope = (q, q.flip(1), weight, weight, theta.cos(), theta.sin(), 1e-6)
    x, m = random(2, 5, 16), random(2, 1, 16, seed=2)
    heads = q[:, :3, :1], q[:, 1:, 1:2], q[:, 1:, 2:]
    levels = [part for x in heads[:2] for part in kernels.quantize_blocks(x)]
    keys = random(2, 128, 1, 8, seed=3)
    lists = (torch.tensor(x, dtype=torch.int32) for x in ([[[0, 2]]], [0, 1], [64, 5]))
    listed = heads[0], keys, keys.neg(), *lists, 64, 0.3
    frames = [channels_last(random(*shape)) for shape in ((2, 3, 2, 4, 5), (6, 3, 3, 1, 1), (2, 6, 2, 4, 5))]
    convolved = *frames[:2], random(6), frames[0][:, :, :1].neg(), frames[2]
    eight_bits = random(8, 16).mul(40).round().to(torch.int8), random(8, seed=1)
    return {
        "rms_norm_silu": (kernels.rms_norm_silu, (random(2, 3, 16), random(16), random(16, seed=1))),
        "causal_conv3d": (kernels.causal_conv3d, convolved),
        "causal_conv3d_norm": (convolve_and_norm, (*convolved, random(6, seed=1))),
        "upsample_conv": (kernels.upsample_conv, (frames[0], random(8, 3, 2, 2), random(2))),
        "qk_norm_rope": (kernels.qk_norm_rope, rope),
        "qk_norm_rope_8bit": (kernels.qk_norm_rope_8bit, rope),
        "ada_norm": (kernels.ada_norm, (x, m, m.neg(), 1e-6)),
        "gated_ada_norm": (kernels.gated_ada_norm, (x, x.flip(1), m, m.neg(), m, 1e-6)),
        "ada_norm_8bit": (kernels.ada_norm_8bit, (x, m, m.neg(), 1e-6)),
        "gated_ada_norm_8bit": (kernels.gated_ada_norm_8bit, (x, x.flip(1), m, m.neg(), m, 1e-6)),
        "quantize_rows": (kernels.quantize_rows, (x, "int8")),
        "linear_w8a8": (kernels.linear_w8a8, (*kernels.quantize_rows(x, "int8"), *eight_bits, random(8))),
        "linear_w8": (kernels.linear_w8, (x, *eight_bits, random(8))),
        "linear": (multiply, (x, random(8, 16), random(8), random(2, 1, 8), random(2, 5, 8, seed=1))),
        "layer_norm": (kernels.layer_norm, (x, random(16), random(16, seed=1), 1e-6)),
        "rms_norm": (kernels.rms_norm, (x, random(16), 1e-6)),
        "guidance_step": (kernels.guidance_step, (x, x.flip(1), x.neg(), random(1), random(2, 2))),
        "frames_to_nv12": (kernels.frames_to_nv12, (random(1, 3, 2, 4, 6),)),
        "frames_to_uint8": (kernels.frames_to_uint8, (random(1, 3, 2, 4, 5),)),
        "attention": (attend, (*heads, 0.3, None)),
        "attention_lse": (partial(attend, return_lse=True), (*heads, 0.3, None)),
        "attention_8bit": (attend_levels, (*levels, heads[2].half(), None, 128, 0.3, None, torch.float32)),
        "quantize_blocks": (kernels.quantize_blocks, (x.view(2, 5, 2, 8),)),
        "quantize_channels": (kernels.quantize_channels, (x.view(2, 5, 2, 8),)),
        "chunk_attention": (attend_chunk, (heads[0], heads[0].neg(), *heads[1:], [2, 2, 0, 1], 0.3)),
        "sparse_attention": (attend_blocks, listed),
        "sparse_attention_lse": (partial(attend_blocks, return_lse=True), listed),
    }


OPS = sorted(calls())
# Ops whose node has no gradient.
INTEGRAL = (
    "ada_norm_8bit",
    "attention_8bit",
    "frames_to_nv12",
    "frames_to_uint8",
    "gated_ada_norm_8bit",
    "guidance_step",
    "linear_w8",
    "linear_w8a8",
    "qk_norm_rope_8bit",
    "quantize_blocks",
    "quantize_channels",
    "quantize_rows",
    "sparse_attention",
    "sparse_attention_lse",
)
FLOATING = [op for op in OPS if op not in INTEGRAL]
# What the node of an op takes beyond what its call in calls() gives.
REST: dict[str, tuple[Any, ...]] = {
    "rms_norm_silu": (True, 1e-12),
    "causal_conv3d_norm": (True,),
    "ada_norm_8bit": (torch.int8,),
    "guidance_step": ([],),
    "gated_ada_norm_8bit": (torch.int8,),
    "quantize_blocks": (None, 128, torch.int8),
    "qk_norm_rope_8bit": (False, "interleaved", torch.int8, 128, 1.0, None, None),
}


def flat(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def test_the_inventory_lists_every_implementation_with_reasons() -> None:
    rows = kernels.inventory()
    assert {row["op"] for row in rows} == set(OPS)
    for op in OPS:
        mine = [row for row in rows if row["op"] == op]
        assert sum(row["chosen"] for row in mine) == 1
        assert mine[-1]["impl"] == "reference"
        assert all(bool(row["reasons"]) != row["chosen"] for row in mine)
        expected = "native" if any(row["impl"] == "native" for row in mine) else "reference"
        expected = "sdpa" if op in ("attention", "chunk_attention") else expected
        expected = "onednn" if op in ("linear", "causal_conv3d", "upsample_conv") else expected
        expected = "apart" if op == "causal_conv3d_norm" else expected
        expected = "gather" if op.startswith("sparse_attention") else expected
        assert next(row["impl"] for row in mine if row["chosen"]) == expected


def test_every_reason_is_given_not_only_the_first() -> None:
    native = dispatch.candidates("ada_norm")[0]
    reasons = kernels.unsupported_reasons(native, GPU_CASE._replace(grad=True))
    assert len(reasons) == 3
    assert "cuda" in reasons[0]
    assert "bfloat16" in reasons[1]
    assert "gradient" in reasons[2]


@pytest.mark.parametrize("op", OPS)
def test_the_reference_runs_everywhere(op: str) -> None:
    assert kernels.select(op, kernels.Case("cpu", None, True)).impl == "reference"
    assert kernels.select(op, kernels.Case("cuda", torch.float64)).impl == "reference"


def test_an_interpreted_kernel_is_never_chosen_by_itself() -> None:
    half = kernels.Case("cpu", torch.float16)
    assert kernels.select("ada_norm", half).impl == "reference"
    assert kernels.select("ada_norm", half, "triton").impl == "triton"


def test_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    case = dispatch.CPU_FLOAT32
    assert kernels.select("ada_norm", case).impl == "native"
    monkeypatch.setenv("GLIMT_IMPL_ADA_NORM", "reference")
    assert kernels.select("ada_norm", case).impl == "reference"
    assert kernels.select("ada_norm", case, "native").impl == "native"
    assert kernels.select("rms_norm_silu", case).impl == "native"


def test_an_override_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    call, args = calls()["ada_norm"]
    with pytest.raises(kernels.UnsupportedError, match="native, triton, reference"):
        call(*args, impl="natvie")
    with pytest.raises(kernels.UnsupportedError, match="float32, the tensors are float64"):
        call(*(arg.double() if isinstance(arg, Tensor) else arg for arg in args), impl="native")
    monkeypatch.setenv("GLIMT_IMPL_ADA_NORM", "native")
    with pytest.raises(kernels.UnsupportedError, match="gradient"):
        call(args[0].requires_grad_(), *args[1:])
    with pytest.raises(kernels.UnsupportedError, match="no op"):
        kernels.select("ada_nrom", dispatch.CPU_FLOAT32)


@pytest.mark.parametrize("op", FLOATING)
def test_half_precision_takes_the_reference_in_its_own_dtype(op: str) -> None:
    call, args = calls()[op]
    low = [arg.bfloat16() if isinstance(arg, Tensor) else arg for arg in args]
    found = flat(call(*low))
    assert found[0].dtype == torch.bfloat16
    for y, exact in zip(found, flat(call(*args)), strict=True):
        torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("op", FLOATING)
def test_gradients_are_those_of_the_reference(op: str) -> None:
    call, args = calls()[op]
    wide = [arg.double().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
    assert torch.autograd.gradcheck(lambda *a: call(*a), wide)
    narrow = [arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
    assert all(y.requires_grad for y in flat(call(*narrow)))


@pytest.mark.parametrize("op", OPS)
def test_pytorch_accepts_the_node(op: str) -> None:
    """Schema, fake implementation and registration of autograd, by PyTorch's own examination."""
    call, args = calls()[op]
    args = (*args, *REST.get(op, ()))
    node = getattr(torch.ops.glimt, op).default
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(node, args, test_utils=tests)
    if op in FLOATING:
        needing = tuple(arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args)
        torch.library.opcheck(node, needing, test_utils=["test_schema", "test_faketensor"])
        mine, theirs = (sum(y.square().sum() for y in flat(f(*needing))) for f in (node, call))
        tensors = [arg for arg in needing if isinstance(arg, Tensor)]
        for a, b in zip(torch.autograd.grad(mine, tensors), torch.autograd.grad(theirs, tensors), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_compiled_and_exported_graphs_hold_the_node(op: str) -> None:
    call, args = calls()[op]
    tensors = tuple(arg for arg in args if isinstance(arg, Tensor))
    numbers = tuple(arg for arg in args if not isinstance(arg, Tensor))

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return call(*tensors, *numbers)

    with torch.no_grad():
        exported = torch.export.export(Module(), tensors)
        assert f"glimt.{op}" in exported.graph_module.code
        torch.compiler.reset()  # or it counts the ops tested before as recompilations of this one
        compiled = torch.compile(Module(), backend="eager", fullgraph=True)
        for program in (exported.module(), compiled):
            for mine, eager in zip(flat(program(*tensors)), flat(call(*args)), strict=True):
                assert torch.equal(mine, eager)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_give_shapes(op: str) -> None:
    call, args = calls()[op]
    meta = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
    for mine, real in zip(flat(call(*meta)), flat(call(*args)), strict=True):
        assert (mine.shape, mine.dtype, mine.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("op", OPS)
def test_calls_from_several_threads_give_the_bits_of_one(op: str) -> None:
    call, args = calls()[op]
    expected = flat(call(*args))
    with ThreadPoolExecutor(4) as pool:
        results = [flat(result) for result in pool.map(lambda _: call(*args), range(64))]
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_inference_mode_and_parameters() -> None:
    gamma = torch.nn.Parameter(random(16))
    x = random(3, 16)
    with torch.inference_mode():
        inside = kernels.rms_norm_silu(x, gamma)
    assert torch.equal(inside, kernels.rms_norm_silu(x, gamma.detach()))


def test_one_thread_pool_with_pytorch() -> None:
    """Two OpenMP runtimes in one process would spin against each other.

    In a process of its own: packages that other tests import (sentencepiece, for one) bring one that no kernel uses.
    """
    from glimt_kernels import _native

    if _native.threading() != "OpenMP" or not Path("/proc/self/maps").exists():
        pytest.skip("not built for this processor: one OpenMP runtime is a matter of Linux with OpenMP")
    code = "import torch, glimt_kernels._native as n; n.threading(); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len({line.split()[-1] for line in maps.splitlines() if "libgomp" in line}) == 1


def test_inside_references_only_each_op_runs_its_reference_in_this_thread_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLIMT_IMPL_ADA_NORM", "native")
    with dispatch.references_only():
        assert {row["impl"] for row in kernels.inventory() if row["chosen"]} == {"reference"}
        assert dispatch.select("ada_norm", dispatch.CPU_FLOAT32, "native").impl == "native"
        with dispatch.references_only(False):
            assert kernels.wants_references()
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(kernels.wants_references).result()
    assert not kernels.wants_references()
    assert dispatch.select("ada_norm", dispatch.CPU_FLOAT32).impl == "native"

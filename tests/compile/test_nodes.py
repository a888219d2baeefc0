"""The function beside each node means what the op's reference means: other dtypes, odd sizes, extreme values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from compile.exported import DTYPES, session
from glimt.compile.nodes import DOMAIN, NODES, OPSET, functions
from glimt.errors import CompileError
from glimt_kernels import ada_norm, attention, layer_norm, qk_norm_rope, rms_norm
from models.tiny import relative_error

B, N, L, HEADS, HEAD_DIM = 2, 7, 5, 3, 10
D = HEADS * HEAD_DIM
SCALE, EPS = 0.37, 1e-5
WIDE = ("cos", "sin", "bias", "scale", "shift")  # float32 whatever the dtype of the rest, as models have them
# Of the output's size: unit roundoff with room for a few roundings on the way (attention: scaled q, weights, sum).
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"q": (B, N, HEADS, HEAD_DIM), "k": (B, L, HEADS, HEAD_DIM), "v": (B, L, HEADS, HEAD_DIM)},
    "qk_norm_rope": {
        "q": (B, N, HEADS, HEAD_DIM),
        "k": (B, N, HEADS, HEAD_DIM),
        "q_weight": (D,),
        "k_weight": (D,),
        "cos": (N, HEAD_DIM // 2),
        "sin": (N, HEAD_DIM // 2),
    },
    "ada_norm": {"x": (B, N, D), "scale": (B, 1, D), "shift": (1, N, D)},
    "layer_norm": {"x": (B, N, D), "weight": (D,), "bias": (D,)},
    "rms_norm": {"x": (B, N, D), "weight": (D,)},
}
SHAPES["attention_bias"] = {**SHAPES["attention"], "bias": (B, L)}

REFERENCES: dict[str, Callable[..., Any]] = {
    "attention": lambda q, k, v: attention(q, k, v, scale=SCALE, impl="reference"),
    "attention_bias": lambda q, k, v, bias: attention(q, k, v, scale=SCALE, bias=bias, impl="reference"),
    "qk_norm_rope": lambda *x: qk_norm_rope(*x, EPS, impl="reference"),
    "ada_norm": lambda *x: ada_norm(*x, EPS, impl="reference"),
    "layer_norm": lambda *x: layer_norm(*x, EPS, impl="reference"),
    "rms_norm": lambda *x: rms_norm(*x, EPS, impl="reference"),
}


def model_of(name: str, tensors: dict[str, torch.Tensor]) -> onnx.ModelProto:
    op = NODES[name]
    kinds = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
    info = onnx.helper.make_tensor_value_info
    inputs = [info(k, kinds[t.dtype], [f"{k}{i}" for i in range(t.ndim)]) for k, t in tensors.items()]
    first = next(iter(tensors.values()))
    result = kinds[first.dtype], [f"out{i}" for i in range(first.ndim)]
    node = onnx.helper.make_node(
        name,
        list(op.inputs),
        list(op.outputs),
        domain=DOMAIN,
        **{op.attributes[0]: SCALE if op.attributes == ("scale",) else EPS},
    )
    graph = onnx.helper.make_graph([node], "one", inputs, [info(o, *result) for o in op.outputs])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, functions=functions({name}), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def draw(name: str, precision: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    tensors = {}
    for tensor, shape in SHAPES[name].items():
        value = torch.randn(shape, generator=generator)
        if tensor == "x":
            value = value * 3 + 40.0 * (torch.arange(D) == 4)  # an outlier channel
        tensors[tensor] = value if tensor in WIDE else value.to(DTYPES[precision])
    if "bias" in tensors and name == "attention_bias":
        tensors["bias"][0, 2:] = -torch.inf  # masked keys
        tensors["bias"][1, 4] = 6.0  # one key for four hundred
    return tensors


def expected(name: str, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The reference in float64."""
    found = REFERENCES[name](*(tensor.double() for tensor in tensors.values()))
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NODES)
def test_function_equals_the_reference_in_onnx_runtime(name: str, precision: str) -> None:
    tensors = draw(name, precision)
    found = session(model_of(name, tensors).SerializeToString()).run(None, {k: t.numpy() for k, t in tensors.items()})
    assert len(found) == len(NODES[name].outputs)
    for array, wanted in zip(found, expected(name, tensors), strict=True):
        assert array.dtype == next(iter(tensors.values())).numpy().dtype
        assert relative_error(torch.from_numpy(array), wanted) <= TOLERANCE[precision]


@pytest.mark.parametrize("name", NODES)
def test_function_equals_the_reference_in_bfloat16(name: str) -> None:
    """By ONNX's own evaluator: ONNX Runtime has hardly a kernel in bfloat16 for a CPU."""
    import ml_dtypes

    tensors = draw(name, "bf16")
    arrays = {
        k: t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()
        for k, t in tensors.items()
    }
    found = ReferenceEvaluator(model_of(name, tensors)).run(None, arrays)
    for array, wanted in zip(found, expected(name, tensors), strict=True):
        assert array.dtype == ml_dtypes.bfloat16
        assert relative_error(torch.from_numpy(array.astype(np.float32)), wanted) <= TOLERANCE["bf16"]


def test_forms_without_a_node_are_refused_by_name() -> None:
    from glimt.compile.nodes import translations

    translate = translations()[torch.ops.glimt.qk_norm_rope.default]
    angles = torch.zeros(N, HEAD_DIM // 2)
    with pytest.raises(CompileError, match=r"per_head=True, pairs='half'"):
        translate(*[angles] * 6, EPS, True, "half")
    with pytest.raises(CompileError, match="and an order has no node"):
        translate(*[angles] * 6, EPS, False, "interleaved", torch.arange(N))

"""The exported graph is a contract: what stands in the file, the same bytes each time, the same numbers elsewhere."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from compile import exported
from compile.exported import MODELS
from glimt.compile.export import GRAPH_FILE, WEIGHTS_FILE, export, open_graph
from glimt.compile.graphs import Axis, Port, TransformerGraph, fitted
from glimt.compile.nodes import DOMAIN, NODES, OPSET
from glimt.errors import CompileError
from models import tiny

# Token grids (t, y, x), none of them that of the export: one frame, sizes of one, and none a multiple of another.
GRIDS = ((1, 5, 7), (6, 1, 2), (9, 8, 3))
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3}


@pytest.mark.parametrize("way", exported.WAYS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_same_numbers_in_a_second_runtime_at_sizes_never_exported(name: str, precision: str, way: str) -> None:
    spec, graph = exported.graph(name, precision)
    for grid in GRIDS:
        tensors = exported.feed(spec, grid)
        found = exported.run(way, graph, tensors, spec)["velocity"]
        assert found.dtype == spec.precision
        expected = exported.eager(spec, tensors)
        # Eight layers in float16 are further than that from float32 in PyTorch too.
        own = tiny.relative_error(exported.eager(spec, tensors, wide=False), expected) if precision == "fp16" else 0.0
        assert tiny.relative_error(found, expected) <= max(TOLERANCE[precision], 1.1 * own), grid


def test_the_variant_that_is_left_out_has_the_form_of_one_that_is_not() -> None:
    assert set(tiny.VARIANTS) - set(MODELS) == {"t2v-a14b"}
    assert tiny.transformer_config("t2v-a14b") == tiny.transformer_config("t2v")


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_what_the_contract_says(name: str, precision: str) -> None:
    spec, graph = exported.graph(name, precision)
    onnx.checker.check_model(str(graph.path), full_check=True)
    model = onnx.load(graph.path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET, DOMAIN: 1}
    found = [_describe(value) for value in (*model.graph.input, *model.graph.output)]
    assert found == [port.describe() for port in (*spec.inputs, *spec.outputs)]

    layers = spec.model.config.num_layers
    counts = dict.fromkeys(NODES, 0)
    for node in model.graph.node:
        if node.domain:
            counts[node.op_type] += 1
    branch = layers if spec.model.config.has_image_branch else 0
    assert counts == {
        "attention": layers + branch,
        "attention_bias": layers,
        "qk_norm_rope": layers,
        "ada_norm": 2 * layers + 1,
        "layer_norm": layers,
        "rms_norm": layers,
    }
    assert {function.name for function in model.functions} == set(counts)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and "blocks.0.attn1/attention" in names


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
    dtype = {1: "float32", 10: "float16", 16: "bfloat16"}[kind.elem_type]
    return f"{value.name} [{dims}] {dtype}"


@pytest.mark.parametrize("name", ["i2v", "bundled"])
def test_weights_stand_beside_the_graph_under_their_own_names_and_nowhere_else(name: str) -> None:
    spec, graph = exported.graph(name)
    parameters = spec.model.state_dict()
    model = onnx.load(graph.path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name in parameters:
            assert torch.equal(torch.from_numpy(array.copy()), parameters[tensor.name])
        else:
            assert array.dtype.kind == "i" and array.size < 16, tensor.name
    kept = {tensor.name for tensor in model.graph.initializer} & set(parameters)
    unused = {key for key in parameters if key.startswith("condition_embedder.") or ".attn2.to_k." in key}
    unused |= {
        key
        for key in parameters
        if any(part in key for part in (".attn2.to_v.", ".attn2.norm_k", ".add_", ".norm_added_k"))
    }
    assert kept == set(parameters) - unused  # what makes text and time is not part of a step
    inside = onnx.load(graph.path, load_external_data=False).graph.initializer
    outside = {tensor.name for tensor in inside if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == kept


def test_the_digest_of_the_graph_does_not_depend_on_weights(tmp_path: Path) -> None:
    model = exported.in_precision(exported.transformer("t2v", 1), "fp32")
    first = export(TransformerGraph(model), tmp_path / "a")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all alike: nothing may be shared or folded because of it
    second = export(TransformerGraph(model), tmp_path / "b")
    assert first.digest == second.digest and first.weights_digest != second.weights_digest


AGAIN = """
import sys
from pathlib import Path
from compile import exported
from glimt.compile.export import export
from glimt.compile.graphs import TransformerGraph
export(TransformerGraph(exported.in_precision(exported.transformer("t2v", 1), "bf16")), Path(sys.argv[1]))
"""


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    """In two processes, whose sets of strings are in different order."""
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path / "a")], check=True, env=environment)
    export(TransformerGraph(exported.in_precision(exported.transformer("t2v", 1), "bf16")), tmp_path / "b")
    for file in (GRAPH_FILE, WEIGHTS_FILE, "sidecar.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    model = onnx.load(tmp_path / "a" / GRAPH_FILE)
    onnx.checker.check_model(str(tmp_path / "a" / GRAPH_FILE), full_check=True)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert str(tmp_path).encode() not in (tmp_path / "a" / GRAPH_FILE).read_bytes()
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["blocks.0.attn1.to_q.weight"] == onnx.TensorProto.BFLOAT16
    assert kinds["scale_shift_table"] == onnx.TensorProto.FLOAT


def test_a_graph_that_was_damaged_is_not_opened(tmp_path: Path) -> None:
    _, original = exported.graph("t2v")
    folder = tmp_path / "graph"
    shutil.copytree(original.artifact.folder, folder)
    assert open_graph(folder).digest == original.digest
    weights = folder / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(CompileError, match=rf"weights.bin: has {len(content) - 1} bytes, {len(content)} were written"):
        open_graph(folder)
    weights.unlink()
    with pytest.raises(CompileError, match=r"weights.bin: is missing"):
        open_graph(folder)


def test_what_cannot_be_exported_is_refused_in_one_error() -> None:
    model = copy.deepcopy(exported.transformer("t2v", 1)).double()
    with pytest.raises(CompileError, match="graphs are of fp32, fp16 or bf16"):
        export(TransformerGraph(model), Path(exported.HOME.name) / "never")
    with pytest.raises(CompileError) as error:
        TransformerGraph(model.train(), batch=0, timesteps="token")
    assert len(error.value.problems) == 3


def test_inputs_of_wrong_shapes_are_named() -> None:
    spec, _ = exported.graph("t2v")
    tensors = exported.feed(spec, (2, 3, 4))
    assert list(fitted(spec.inputs, list(tensors.values()))) == [port.name for port in spec.inputs]
    tensors["rope_cos"] = tensors["rope_cos"][:, :2]
    tensors["text_k.1"] = tensors["text_k.1"][:, :, :1]
    with pytest.raises(CompileError) as error:
        fitted(spec.inputs, list(tensors.values()))
    assert [problem.split()[0] for problem in error.value.problems] == ["rope_cos", "text_k.1"]


class Sorting(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        if tensors[0].sum() > 0:
            return tensors[0]
        return -tensors[0]


class SortingGraph:
    component, form, precision = "sorting", {"batch": 1}, torch.float32
    inputs = (Port("x", torch.float32, (2, Axis("t"))),)
    outputs = (Port("y", torch.float32, (2, Axis("t"))),)
    module = Sorting()


def test_a_model_that_pytorch_cannot_export_is_an_error_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"cannot export the sorting in the form .*data-dependent"):
        export(SortingGraph(), tmp_path / "never")
    assert list(tmp_path.iterdir()) == []

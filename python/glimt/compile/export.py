"""From a model to the graph that is the contract: an ONNX file with its weights beside it, the same bytes every time.

What the file promises (checked by tests/compile): opset 23, strongly typed, sizes that may vary named; every parameter
under its own name in ``weights.bin`` and nowhere else, so that the digest of ``graph.onnx`` does not depend on weights;
no other constant is as long as a weight; nodes named after their modules; our ops nodes with functions beside them.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.export import Dim

from glimt.compile.graphs import Axis, Graph, Port
from glimt.compile.nodes import DOMAIN, DOMAIN_VERSION, OPSET, functions, import_onnx, translations
from glimt.compile.store import Artifact, Key, read_artifact, write_artifact
from glimt.errors import CompileError

GRAPH_FILE, WEIGHTS_FILE = "graph.onnx", "weights.bin"
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_PAGE_BYTES = 4096  # what a runtime can map into memory
_ROOT = "model."  # the name of the model inside a graph's module


@dataclass(frozen=True)
class GraphKey(Key):
    """What makes an exported graph what it is."""

    component: str
    form: Mapping[str, int | str]
    precision: str
    graph: str
    weights: str
    exporter: Mapping[str, str]


@dataclass(frozen=True)
class ExportedGraph:
    """A graph on disk."""

    artifact: Artifact

    @property
    def path(self) -> Path:
        """The ONNX file; ``weights.bin`` stands beside it."""
        return self.artifact.path(GRAPH_FILE)

    @property
    def digest(self) -> str:
        """SHA-256 of the ONNX file, in which no weight stands."""
        return str(self.artifact.key["graph"])

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' file."""
        return str(self.artifact.key["weights"])


def export(graph: Graph, folder: Path) -> ExportedGraph:
    """Write ``graph`` into ``folder``, which must not exist or be empty: the ONNX file, its weights, a sidecar.

    Raises:
        CompileError: the model cannot be exported in this form, or the folder not be written.
        MissingDependencyError: without ``glimt[onnx]``.
    """
    return ExportedGraph(write_artifact(folder, partial(write_graph, graph)))


def write_graph(graph: Graph, folder: Path) -> tuple[GraphKey, dict[str, Any]]:
    """The two files of ``graph`` into a folder that is being made; their key and what else there is to say of them.

    Raises as :func:`export`.
    """
    if graph.precision not in PRECISIONS:
        raise CompileError(f"graphs are of fp32, fp16 or bf16; the model's products are in {graph.precision}")
    import_onnx()
    model = _tidy(_trace(graph), graph)
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        weights = _write_weights(model, set(graph.module.state_dict()), stream)
    content = _serialize(model)
    (folder / GRAPH_FILE).write_bytes(content)
    key = GraphKey(
        component=graph.component,
        form=dict(graph.form),
        precision=PRECISIONS[graph.precision],
        graph=hashlib.sha256(content).hexdigest(),
        weights=weights,
        exporter=exporter_versions(),
    )
    nodes = Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    return key, {
        "inputs": [port.describe() for port in graph.inputs],
        "outputs": [port.describe() for port in graph.outputs],
        "nodes": dict(sorted(nodes.items())),
    }


def open_graph(folder: Path) -> ExportedGraph:
    """A graph that :func:`export` wrote. Raises CompileError where a file is missing, cut short or changed."""
    return ExportedGraph(read_artifact(folder))


def exporter_versions() -> dict[str, str]:
    """What besides glimt's own sources makes a graph what it is."""
    import_onnx()
    import onnx_ir
    import onnxscript

    return {"torch": torch.__version__, "onnxscript": onnxscript.__version__, "onnx_ir": onnx_ir.__version__}


# ---- tracing ---------------------------------------------------------------------------------------------------------


def _trace(graph: Graph) -> Any:
    """The ``onnx_ir.Model`` as PyTorch writes it."""
    axes = {dim.name: Dim(dim.name, min=1) for port in graph.inputs for dim in port.dims if isinstance(dim, Axis)}
    with torch.no_grad(), warnings.catch_warnings(), _own_errors(graph), _no_talk():
        warnings.simplefilter("ignore")  # of the exporter about its own future
        program = torch.onnx.export(
            graph.module,
            _examples(graph),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple(_dynamic(port, axes) for port in graph.inputs),),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


@contextmanager
def _no_talk() -> Iterator[None]:
    """PyTorch logs for each package that it could also export and that is not here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _own_errors(graph: Graph) -> Iterator[None]:
    """PyTorch wraps what goes wrong; here its cause, ours as it was raised."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, CompileError):
            raise cause from error
        raise CompileError(
            f"PyTorch {torch.__version__} cannot export the {graph.component} in the form {dict(graph.form)}: "
            f"{type(cause).__name__}: {cause}"
        ) from error


def _examples(graph: Graph) -> tuple[torch.Tensor, ...]:
    """Sizes that may vary are all different and above 1, so that PyTorch takes no two of them for one."""
    names = sorted({dim.name for port in graph.inputs for dim in port.dims if isinstance(dim, Axis)})
    sizes = {name: 3 + i for i, name in enumerate(names)}
    return tuple(torch.zeros(port.shape(sizes), dtype=port.dtype) for port in graph.inputs)


def _dynamic(port: Port, axes: Mapping[str, Any]) -> dict[int, Any]:
    found = {}
    for axis, dim in enumerate(port.dims):
        if isinstance(dim, Axis):
            found[axis] = axes[dim.name] if dim.factor == 1 else dim.factor * axes[dim.name]
    return found


# ---- tidying ---------------------------------------------------------------------------------------------------------


def _tidy(model: Any, graph: Graph) -> Any:
    import onnx_ir

    _keep_parameters(model, _optimize)
    _name_nodes(model)
    model.graph.name = graph.component
    model.producer_name, model.producer_version = DOMAIN, None
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for proto in functions(used):
        function = onnx_ir.from_proto(proto)
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = DOMAIN_VERSION
    clear = onnx_ir.passes.common.ClearMetadataAndDocStringPass()
    clear(model)
    return model


def _keep_parameters(model: Any, simplify: Callable[[Any], None]) -> None:
    """Run ``simplify`` with the parameters as inputs: none is folded, or shared because equal today."""
    parameters = {name: value for name, value in model.graph.initializers.items() if name.startswith(_ROOT)}
    held = {}
    for name, value in parameters.items():
        held[name], value.const_value = value.const_value, None
        del model.graph.initializers[name]
        model.graph.inputs.append(value)
    simplify(model)
    for name, value in parameters.items():
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value, value.name = held[name], name.removeprefix(_ROOT)
            model.graph.register_initializer(value)


def _optimize(model: Any) -> None:
    from onnxscript import optimizer

    optimizer.optimize_ir(model)


def _name_nodes(model: Any) -> None:
    """``blocks.0.attn1/attention``: the module, the op, and a number where a module has several."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        module = (scopes[-2] if len(scopes) > 1 else "").removeprefix(_ROOT.rstrip(".")).removeprefix(".")
        name = f"{module}/{node.op_type}" if module else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


# ---- writing ---------------------------------------------------------------------------------------------------------


def _write_weights(model: Any, parameters: set[str], stream: BinaryIO) -> str:
    """Write the parameters, by name, each at a page of its own; the model then refers to them. SHA-256 of it all."""
    import onnx_ir

    state, position = hashlib.sha256(), 0
    for name, value in sorted(model.graph.initializers.items()):
        if _ROOT + name not in parameters:
            continue
        tensor = value.const_value
        data = tensor.tobytes()
        padded = data + bytes(-len(data) % _PAGE_BYTES)
        stream.write(padded)
        state.update(padded)
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE, position, len(data), tensor.dtype, shape=tensor.shape, name=name
        )
        position += len(padded)
    return state.hexdigest()


def _serialize(model: Any) -> bytes:
    import onnx_ir

    return bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))

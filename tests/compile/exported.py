"""Small graphs for the tests of this folder, what to feed them, and three ways to run them on a CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import torch

from glimt.compile.export import ExportedGraph, export
from glimt.compile.graphs import Graph, TransformerGraph
from glimt.compile.nodes import DOMAIN
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.context import CrossContext, Modulation, TextContext, fold_padding
from glimt.models.wan.rope import RopeTables, rope_tables
from glimt.models.wan.transformer import WanTransformer, keeps_fp32
from glimt.weights.folder import read_folder
from models import tiny

BUNDLED = Path(__file__).parents[2] / "python/glimt_world/checkpoint"
# t2v-a14b is not among them: each of its experts is of the form of t2v, to the last number of the config.
MODELS = ("t2v", "i2v", "flf2v", "i2v-a14b", "ti2v", "bundled")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HOME = tempfile.TemporaryDirectory(prefix="glimt-graphs-")

Tensors = dict[str, torch.Tensor]


@cache
def transformer(name: str, layers: int = 2) -> WanTransformer:
    """A transformer in float32: the bundled one whole, or a tiny random one of a variant."""
    if name == "bundled":
        return read_folder(BUNDLED).load_component("transformer", "cpu", torch.float32).eval()
    theirs = tiny.transformer(name, num_layers=layers)
    model = WanTransformer(WanTransformerConfig.from_dict(dict(theirs.config)))
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model.eval()


def in_precision(model: WanTransformer, precision: str) -> WanTransformer:
    """A copy whose parameters have the dtypes that loading gives them."""
    other = WanTransformer(model.config).eval()
    state = {
        name: tensor.to(torch.float32 if keeps_fp32(name) else DTYPES[precision], copy=True)
        for name, tensor in model.state_dict().items()
    }
    other.load_state_dict(state, assign=True)
    return other


def graph(name: str, precision: str = "fp32") -> tuple[TransformerGraph, ExportedGraph]:
    """The graph of a model with guidance; in the form with known frames where the variant has them."""
    return _graph(name, precision)


@cache
def _graph(name: str, precision: str) -> tuple[TransformerGraph, ExportedGraph]:
    timesteps = "frame" if name in ("ti2v", "bundled") else "sample"
    model = in_precision(transformer(name, 2 if precision == "fp32" else 1), precision)
    spec = TransformerGraph(model, prompts=2, timesteps=timesteps)
    return spec, export(spec, Path(HOME.name) / f"{name}-{precision}")


def feed(spec: TransformerGraph, grid: tuple[int, int, int]) -> Tensors:
    """Inputs for a token grid (t, y, x), as a request makes them: guided, padding folded, the first frame known."""
    model, config, (t, y, x) = spec.model, spec.model.config, grid
    generator = torch.Generator().manual_seed(t + 10 * y + 100 * x)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    _, ph, pw = config.patch_size
    latents, text = draw(1, config.in_channels, t, ph * y, pw * x), draw(2, 10 + t, config.text_dim)
    text[0, 5 + t :], text[1, 3:] = 0, 0
    image = None
    if config.image_dim is not None:
        image = draw(2 * (2 if config.pos_embed_seq_len else 1), tiny.IMAGE_TOKENS, config.image_dim)
    index = [0] + [1] * (t - 1) if spec.form["timesteps"] == "frame" else [1]
    with torch.no_grad():
        context = model.prepare_text(fold_padding(text), image)
        time = model.prepare_time(torch.tensor([0.0, 731.0])).at(torch.tensor([index]))
    return spec.pack(latents, time, context, rope_tables(config.attention_head_dim, grid))


def eager(spec: TransformerGraph, tensors: Tensors, *, wide: bool = True) -> torch.Tensor:
    """What the model itself makes of the same tensors, its weights those of the graph; ``wide``: in float32."""
    model = in_precision(spec.model, "fp32") if wide else spec.model
    latents, temb, proj, cos, sin, bias, *rest = (tensor.float() if wide else tensor for tensor in tensors.values())
    each = len(rest) // len(model.blocks)
    layers = tuple(
        CrossContext(k, v, bias, *image) for k, v, *image in (rest[i : i + each] for i in range(0, len(rest), each))
    )
    with torch.no_grad():
        return model(
            latents, Modulation(temb, proj), TextContext(layers), rope=RopeTables(cos.flatten(0, 2), sin.flatten(0, 2))
        )


# ---- three ways to run a graph ---------------------------------------------------------------------------------------


def session(model: bytes | str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@cache
def by_function(path: Path) -> Any:
    """ONNX Runtime on the file itself: it knows no op of ours, so it takes the functions of the same names."""
    return session(str(path))


@cache
def inlined(path: Path) -> Any:
    """ONNX Runtime on the graph with every function written out by ONNX's own inliner: no node of ours is left."""
    model = onnx.inliner.inline_local_functions(onnx.load(path))
    assert not [node for node in model.graph.node if node.domain == DOMAIN] and not model.functions
    return session(model.SerializeToString())


class Cut:
    """The graph cut at our nodes: they are calls of ``glimt_kernels``, all between them ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        graph = self.model.graph
        self.weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.types = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        self.types |= {
            name: onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in self.weights.items()
        }
        self.steps: list[Any] = []
        self.calls = 0
        pending: list[Any] = []
        for node in graph.node:
            if node.domain != DOMAIN:
                pending.append(node)
                continue
            self.steps += [self._segment(pending), node]
            self.calls, pending = self.calls + 1, []
        self.steps.append(self._segment(pending))

    def _segment(self, nodes: list[Any]) -> Any:
        if not nodes:
            return None
        made = {name for node in nodes for name in node.output if name}
        mine = {id(node) for node in nodes}
        taken = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        wanted = {name for node in self.model.graph.node if id(node) not in mine for name in node.input}
        wanted |= {output.name for output in self.model.graph.output}
        graph = onnx.helper.make_graph(
            nodes, "segment", [self.types[name] for name in taken], [self.types[n] for n in sorted(made & wanted)]
        )
        opsets = [entry for entry in self.model.opset_import if entry.domain != DOMAIN]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self.model.ir_version)
        return session(model.SerializeToString())

    def run(self, _: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = {**self.weights, **inputs}
        for step in self.steps:
            if step is None:
                continue
            if isinstance(step, onnx.NodeProto):
                values.update(zip(step.output, _call(step, values), strict=True))
            else:
                names = [output.name for output in step.get_outputs()]
                found = step.run(names, {value.name: values[value.name] for value in step.get_inputs()})
                values.update(zip(names, found, strict=True))
        return [values[output.name] for output in self.model.graph.output]


def _call(node: Any, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """One of our nodes by the op of PyTorch that it stands for, whatever implementation is chosen for it here."""
    tensors = [torch.from_numpy(np.array(values[name])) for name in node.input]
    attributes = [attribute.f for attribute in node.attribute]
    if node.op_type in ("attention", "attention_bias"):
        q, k, v, *bias = tensors
        found = torch.ops.glimt.attention(q, k, v, *attributes, *(bias or [None]))
    else:
        found = getattr(torch.ops.glimt, node.op_type)(*tensors, *attributes)
    return [tensor.numpy() for tensor in (found if isinstance(found, (tuple, list)) else [found])]


@cache
def cut(path: Path) -> Cut:
    return Cut(path)


WAYS = {"function": by_function, "inlined": inlined, "nodes": cut}


def run(way: str, exported: ExportedGraph, tensors: Tensors, spec: Graph) -> dict[str, torch.Tensor]:
    found = WAYS[way](exported.path).run(None, arrays(tensors))
    return {port.name: torch.from_numpy(array) for port, array in zip(spec.outputs, found, strict=True)}

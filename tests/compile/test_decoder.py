"""The decoder as a graph for a clip's first frame and one for the next: a clip of any length, split anyhow."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

from compile import exported
from glimt.compile.decoder import DecoderGraph
from glimt.compile.export import WEIGHTS_FILE, ExportedGraph, export
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae import WanVae
from glimt.weights.folder import read_folder
from models import tiny

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3}
# Of the forms of Wan 2.1 and 2.2. The first in fp16 with a level less: an export is a matter of seconds.
FORMS = {"2.1": "t2v", "2.2": "ti2v"}
SMALLER = {"dim_mult": [1, 2, 4], "temperal_downsample": [True, True]}
CASES = (("2.1", "fp32"), ("2.1", "fp16"), ("2.2", "fp32"), ("2.2", "fp16"), ("bundled", "fp32"))
# Latent frames, height and width of a clip, and how many frames a step takes: sizes of none of the exports.
CLIPS = ((5, 1, 6, (1,)), (8, 5, 7, (3,)), (7, 2, 1, (2, 4)))


@cache
def decoder(form: str, precision: str) -> WanVae:
    if form == "bundled":
        return read_folder(exported.BUNDLED).load_component("vae", "cpu", exported.DTYPES[precision]).eval()
    theirs = tiny.vae(FORMS[form], **(SMALLER if (form, precision) == ("2.1", "fp16") else {}))
    model = WanVae(WanVaeConfig.from_dict(dict(theirs.config)))
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model.eval().to(exported.DTYPES[precision])


@cache
def graphs(form: str, precision: str) -> tuple[tuple[DecoderGraph, ExportedGraph], ...]:
    model = decoder(form, precision)
    specs = DecoderGraph(model, first=True), DecoderGraph(model, first=False)
    home = Path(exported.HOME.name)
    return tuple((spec, export(spec, home / f"{form}-{precision}-{spec.component}")) for spec in specs)


def in_chunks(form: str, precision: str, way: str, latents: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
    """The clip by the two graphs: the first frame, then as many as ``steps`` says, the last size again and again."""
    (spec, graph), (step_spec, step_graph) = graphs(form, precision)
    out = exported.run(way, graph, {"latents": latents[:, :, :1]}, spec)
    frames, done, sizes = [out["pixels"]], 1, list(steps)
    while done < latents.shape[2]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        chunk = {"latents": latents[:, :, done : done + size], **step_spec.turned(out)}
        out = exported.run(way, step_graph, chunk, step_spec)
        frames.append(out["pixels"])
        done += size
    return torch.cat(frames, dim=2)


@pytest.mark.parametrize(("form", "precision"), CASES)
def test_chunks_in_a_second_runtime_are_the_whole_clip(form: str, precision: str) -> None:
    model = decoder(form, precision)
    wide = copy.deepcopy(model).float()
    torch.manual_seed(0)
    for f, h, w, steps in CLIPS:
        latents = torch.randn(1, model.config.z_dim, f, h, w).to(exported.DTYPES[precision])
        found = in_chunks(form, precision, "function", latents, steps)
        with torch.no_grad():
            expected = wide.decode_whole(latents.float())
            # PyTorch in float16 may itself be a little further than that from float32.
            own = tiny.relative_error(model.decode_whole(latents), expected) if precision == "fp16" else 0.0
        assert found.dtype == exported.DTYPES[precision]
        assert tiny.relative_error(found, expected) <= max(TOLERANCE[precision], 1.1 * own), (f, h, w, steps)


@pytest.mark.parametrize("form", FORMS)
def test_the_files_are_what_the_contract_says(form: str) -> None:
    (first, first_graph), (step, step_graph) = graphs(form, "fp32")
    for spec, graph in ((first, first_graph), (step, step_graph)):
        onnx.checker.check_model(str(graph.path), full_check=True)
        model = onnx.load(graph.path, load_external_data=False)
        assert [value.name for value in model.graph.input] == [port.name for port in spec.inputs]
        assert [value.name for value in model.graph.output] == [port.name for port in spec.outputs]
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert len(convolutions) <= sum(p.ndim >= 4 for p in decoder(form, "fp32").decoder.parameters()) + 1
        outside = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        assert outside <= set(decoder(form, "fp32").state_dict())
    assert len(first.inputs) == 1
    turned = [port.name.replace("next.", "past.") for port in first.outputs[1:]]
    assert turned == [port.name for port in step.inputs[1:]]
    assert (
        [p.dims for p in first.outputs[1:]] == [p.dims for p in step.inputs[1:]] == [p.dims for p in step.outputs[1:]]
    )
    # All convolutions that look back, and nothing else: each of the decoder's with a kernel of three frames.
    names = {n for n, p in decoder(form, "fp32").decoder.named_parameters() if p.ndim == 5 and p.shape[2] == 3}
    assert {name.removeprefix("past.decoder.") + ".weight" for name in turned} == names
    assert (first_graph.path.parent / WEIGHTS_FILE).stat().st_size > 0

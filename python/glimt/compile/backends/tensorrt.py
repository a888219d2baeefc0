"""Plan files by TensorRT-RTX or by TensorRT: one code, written against what both modules have.

TensorRT-RTX builds without a GPU, for any card it knows. TensorRT builds for the card in the machine only; this code
has **not been tested** with it. Which is which is asked of the module (``set_compute_capability``), not of its name.

The network is strongly typed: the graph's dtypes are what is computed. Attention is never taken apart into products
and a softmax: where a card has no fused kernel for one, the build fails. What came out is read from the builder's own
log (its inspector of TRT engines wants a GPU): arena, layers, and the names of the fused kernels.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.compile.backends import PlanFacts, PlanJob
from glimt.errors import CompileError, MissingDependencyError

# How both libraries name the kernel of a whole attention; seen in TensorRT-RTX 1.7.
_FUSED = re.compile(r"^Name: \S*(?:_mha|fmha|flash)\S*,", re.MULTILINE | re.IGNORECASE)
_LAYERS = "Layers:\n"


@dataclass(frozen=True)
class Flavour:
    """One of the two: its name as a backend, its module, what it is installed with."""

    name: str
    module: str
    install: str


FLAVOURS = {
    "tensorrt-rtx": Flavour("tensorrt-rtx", "tensorrt_rtx", "pip install 'glimt[rtx]'"),
    "tensorrt": Flavour(
        "tensorrt", "tensorrt", "pip install 'glimt[tensorrt]', with NVIDIA's own index as --extra-index-url"
    ),
}


class TensorRT:
    """A builder; see :class:`glimt.compile.backends.Builder`."""

    def __init__(self, flavour: Flavour) -> None:
        self.name = flavour.name
        self._flavour = flavour

    def library(self) -> str:
        return f"{self.name} {self._module().__version__}"

    def flags(self) -> Mapping[str, bool | int | float | str]:
        return {"max_aux_streams": 0, "profiling_verbosity": "detailed", "strongly_typed": True}

    def check_target(self, target: str) -> None:
        trt = self._module()
        if _chooses_target(trt):
            known = sorted(name for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name))
            if _capability(target) not in known:
                raise CompileError(f"{self.library()} builds for {', '.join(known)}; asked for was {target}")
            return
        here = _card_here()
        if target != here:
            found = f"here is {here}" if here else "here is none"
            raise CompileError(
                f"{self.library()} builds for the card in the machine only: asked for was {target}, {found}; "
                "build there, or with backend 'tensorrt-rtx'"
            )

    def build(self, job: PlanJob, path: Path) -> PlanFacts:
        trt = self._module()
        start = time.perf_counter()
        log = _make_log(trt)
        builder = trt.Builder(log)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(job.graph)):
            errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise CompileError(f"{self.library()} does not take {job.graph.name}:", errors or log.errors())
        attentions = _keep_attention_whole(trt, network)
        plan = builder.build_serialized_network(network, self._config(trt, builder, job))
        if plan is None:
            raise CompileError(f"{self.library()} made no plan file for {job.target}:", log.errors() or ["no reason"])
        with path.open("wb") as stream:
            stream.write(memoryview(plan))
        return _facts(log, plan.nbytes, attentions, time.perf_counter() - start)

    def _config(self, trt: Any, builder: Any, job: PlanJob) -> Any:
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.max_aux_streams = 0  # one stream: what runs an engine may capture it
        profile = builder.create_optimization_profile()
        for name, shapes in job.shapes.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        if _chooses_target(trt):
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, _capability(job.target)), 0)
        return config

    def _module(self) -> Any:
        flavour = self._flavour
        try:
            return importlib.import_module(flavour.module)
        except ImportError as error:
            purpose = f"build plan files with backend {flavour.name!r}"
            raise MissingDependencyError(flavour.module.replace("_", "-"), purpose, flavour.install) from error


def _chooses_target(trt: Any) -> bool:
    return hasattr(trt.IBuilderConfig, "set_compute_capability") and hasattr(trt, "ComputeCapability")


def _network_flags(trt: Any) -> int:
    """TensorRT 11 has no other networks than strongly typed ones, and no flag for it."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _capability(target: str) -> str:
    return f"SM{target.removeprefix('sm_')}"


def _card_here() -> str:
    """As ``sm_89``; empty where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def _keep_attention_whole(trt: Any, network: Any) -> int:
    """Forbid taking any attention apart; how many there are."""
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how TensorRT's Python has a layer looked at as what it is
            layer.attention.decomposable = False
            count += 1
    return count


def _make_log(trt: Any) -> Any:
    """A logger that keeps all lines. The class is made here, for its base is in the module."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((int(severity), message))

        def errors(self) -> list[str]:
            worst = int(trt.ILogger.Severity.ERROR)
            return [message for severity, message in self.lines if severity <= worst]

    return Log()


def _facts(log: Any, plan_bytes: int, attentions: int, seconds: float) -> PlanFacts:
    lines = [message for _, message in log.lines]
    layers = next((message for message in lines if message.startswith(_LAYERS)), None)
    return PlanFacts(
        plan_bytes=plan_bytes,
        weights_bytes=_told(lines, "Total Weights Memory"),
        activation_bytes=_told(lines, "Total Activation Memory"),
        layers=None if layers is None else layers.count("LayerType: "),
        attentions=attentions,
        fused_attentions=None if layers is None else len(_FUSED.findall(layers)),
        seconds=seconds,
    )


def _told(lines: list[str], what: str) -> int | None:
    """The number of bytes in the last line that says ``what``."""
    found = [match for line in lines if (match := re.fullmatch(rf"{what}: (\d+) bytes", line.strip()))]
    return int(found[-1][1]) if found else None

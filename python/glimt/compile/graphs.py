"""What is exported of a model: which tensors go in and come out, under which names, and which of their sizes may vary.

A graph calls the model's own modules and adds no mathematics. What depends only on the prompt, the schedule or the
grid (keys and values of cross-attention, time embedding, rotary tables) is an input: computed once per request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from glimt.errors import CompileError
from glimt.models.wan.context import CrossContext, Modulation, TextContext
from glimt.models.wan.rope import RopeTables
from glimt.models.wan.transformer import WanTransformer

TIMESTEPS = ("sample", "frame")


@dataclass(frozen=True)
class Axis:
    """A size that may vary from call to call: ``factor`` times what is called ``name``."""

    name: str
    factor: int = 1

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{self.factor}*{self.name}"


Dims = tuple[int | Axis, ...]


@dataclass(frozen=True)
class Port:
    """One input or output of a graph."""

    name: str
    dtype: torch.dtype
    dims: Dims

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The sizes where those that may vary are ``sizes``."""
        return tuple(dim if isinstance(dim, int) else dim.factor * sizes[dim.name] for dim in self.dims)

    def describe(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.dims))}] {str(self.dtype).removeprefix('torch.')}"


class Graph(Protocol):
    """What :func:`glimt.compile.export.export` takes: ``module`` maps ``inputs`` to ``outputs``, in their order.

    ``component`` names it, ``form`` says in plain values what was decided about it, ``precision`` is that of its
    products.
    """

    component: str
    form: Mapping[str, int | str]
    precision: torch.dtype
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def module(self) -> nn.Module: ...


class _Transformer(nn.Module):
    """A WanTransformer whose arguments are the tensors of ``TransformerGraph.inputs``, in their order."""

    def __init__(self, model: WanTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        latents, temb, proj, cos, sin, bias, *rest = tensors
        per_layer = len(rest) // len(self.model.blocks)
        layers = (rest[i : i + per_layer] for i in range(0, len(rest), per_layer))
        text = TextContext(tuple(CrossContext(k, v, bias, *image) for k, v, *image in layers))
        rope = RopeTables(cos.flatten(0, 2), sin.flatten(0, 2))
        out: Tensor = self.model(latents, Modulation(temb, proj), text, rope=rope)
        return out


class TransformerGraph:
    """One forward of a Wan transformer.

    Sizes that may vary: ``t``, ``y``, ``x`` of the token grid, so that frames, height and width of the latents are
    ``pt*t``, ``ph*y``, ``pw*x`` with the model's patch; ``text`` tokens (padding folded, its weight in ``text_bias``),
    ``image`` tokens where the model has an image branch.

    Args:
        model: in evaluation, its parameters in the precision that is wanted.
        batch: latents per call.
        prompts: texts per latents: 2 with guidance, else 1.
        timesteps: "sample", or "frame" where frames have timesteps of their own (known frames of Wan 2.2 TI2V).
    """

    component = "transformer"

    def __init__(self, model: WanTransformer, *, batch: int = 1, prompts: int = 1, timesteps: str = "sample") -> None:
        problems = [
            f"{name} must be at least 1, found {n}" for name, n in (("batch", batch), ("prompts", prompts)) if n < 1
        ]
        if timesteps not in TIMESTEPS:
            problems.append(f"timesteps must be 'sample' or 'frame', found {timesteps!r}")
        if model.training:
            problems.append("the model is in training; call .eval() first")
        if problems:
            raise CompileError(*problems)
        self.model = model
        self.form: Mapping[str, int | str] = {"batch": batch, "prompts": prompts, "timesteps": timesteps}
        self.precision: torch.dtype = model.proj_out.weight.dtype
        self.inputs = self._inputs(batch, batch * prompts, Axis("t") if timesteps == "frame" else 1)
        patch = zip(model.config.patch_size, "tyx", strict=True)
        video = tuple(Axis(name, factor) for factor, name in patch)
        self.outputs: tuple[Port, ...] = (
            Port("velocity", self.precision, (batch * prompts, model.config.out_channels, *video)),
        )

    @property
    def module(self) -> nn.Module:
        return _Transformer(self.model).eval()

    def _inputs(self, batch: int, rows: int, groups: int | Axis) -> tuple[Port, ...]:
        config, dtype, wide = self.model.config, self.precision, torch.float32
        video = tuple(Axis(name, factor) for factor, name in zip(config.patch_size, "tyx", strict=True))
        table: Dims = (Axis("t"), Axis("y"), Axis("x"), config.attention_head_dim // 2)
        heads = config.num_attention_heads, config.attention_head_dim
        branches = ("text", "image") if config.has_image_branch else ("text",)
        layers = [
            Port(f"{branch}_{kind}.{i}", dtype, (rows, Axis(branch), *heads))
            for i in range(config.num_layers)
            for branch in branches
            for kind in "kv"
        ]
        return (
            Port("latents", wide, (batch, config.in_channels, *video)),
            Port("temb", dtype, (batch, groups, config.width)),
            Port("time_proj", dtype, (batch, groups, 6, config.width)),
            Port("rope_cos", wide, table),
            Port("rope_sin", wide, table),
            Port("text_bias", wide, (rows, Axis("text"))),
            *layers,
        )

    def pack(self, latents: Tensor, time: Modulation, text: TextContext, rope: RopeTables) -> dict[str, Tensor]:
        """The arguments of ``WanTransformer.forward`` as the graph's inputs, by name; views where they can be."""
        grid = self.model.grid(latents)
        first = text.layers[0]
        bias = first.bias if first.bias is not None else first.k.new_zeros(first.k.shape[:2], dtype=torch.float32)
        tensors = [latents, time.temb, time.proj, *(table.view(*grid, -1) for table in (rope.cos, rope.sin)), bias]
        for layer in text.layers:
            tensors += [layer.k, layer.v]
            if self.model.config.has_image_branch:
                if layer.k_image is None or layer.v_image is None:
                    raise CompileError("the model has an image branch: image tokens are needed with the text")
                tensors += [layer.k_image, layer.v_image]
        return fitted(self.inputs, tensors)


def fitted(ports: Sequence[Port], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """``tensors`` by the names of ``ports``, in their dtypes. Raises CompileError where a shape does not fit."""
    sizes: dict[str, int] = {}
    problems = []
    for port, tensor in zip(ports, tensors, strict=True):
        if len(port.dims) != tensor.ndim:
            problems.append(f"{port.describe()}: found {list(tensor.shape)}")
            continue
        for dim, size in zip(port.dims, tensor.shape, strict=True):
            if isinstance(dim, Axis) and size % dim.factor == 0:
                sizes.setdefault(dim.name, size // dim.factor)
            wanted = dim if isinstance(dim, int) else dim.factor * sizes.get(dim.name, -1)
            if size != wanted:
                problems.append(f"{port.describe()}: found {list(tensor.shape)}")
                break
    if problems:
        raise CompileError(*problems)
    return {port.name: tensor.to(port.dtype) for port, tensor in zip(ports, tensors, strict=True)}

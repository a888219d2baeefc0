"""The Wan VAE's decoder as two graphs: a clip's first latent frame, and any number of the next ones.

    first: latents [1, z_dim, 1, h, w]                -> pixels [1, C, 1, H, W],    next.* for the second chunk
    step:  latents [1, z_dim, t, h, w], past.* of it  -> pixels [1, C, s t, H, W],  next.* for the chunk after it

What a causal convolution looks back on goes in as ``past.<module>`` and comes out as ``next.<module>``, of the same
shape, so that a session keeps two sets of buffers and turns them around. Time is never unrolled: the graph of a clip
of any length is that of one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from glimt.compile.graphs import Axis, Port
from glimt.errors import CompileError
from glimt.models.wan.vae import WanVae
from glimt.models.wan.vae_cache import CausalCache
from glimt_kernels import references_only

_PAST, _NEXT = "past.", "next."


class _Carried(CausalCache):
    """A cache whose frames are given and taken: every module's exactly as many as it looks back on."""

    def __init__(self, past: Mapping[nn.Module, Tensor], *, first: bool) -> None:
        super().__init__()
        self.first = first
        self._frames = dict(past)

    def put(self, module: nn.Module, frames: Tensor, count: int) -> None:
        """Keep the last ``count`` frames; before a clip's first there are zeros.

        Those before are always joined, however many come: a graph holds for any number.
        """
        before = self._frames.get(module)
        if before is None:
            b, c, _, h, w = frames.shape
            before = frames.new_zeros(b, c, count, h, w)
        self._frames[module] = torch.cat([before, frames], dim=2)[:, :, -count:]

    def frames(self, module: nn.Module) -> Tensor | None:
        return self._frames.get(module)


class _Decoder(nn.Module):
    """``decode_chunk`` whose arguments and results are the tensors of ``DecoderGraph``'s ports, in their order."""

    def __init__(self, model: WanVae, carried: Sequence[tuple[nn.Module, Port]], *, first: bool) -> None:
        super().__init__()
        self.model = model
        self._carried = tuple(carried)
        self._first = first

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        latents, *past = tensors
        modules = [module for module, _ in self._carried]
        cache = _Carried(dict(zip(modules, past, strict=False)), first=self._first)
        pixels = self.model.decode_chunk(latents, cache)
        return pixels, *(self._next(cache, module, port, latents) for module, port in self._carried)

    def _next(self, cache: _Carried, module: nn.Module, port: Port, latents: Tensor) -> Tensor:
        """What ``module`` looks back on next; zeros where it has seen no frame yet."""
        found = cache.frames(module)
        if found is not None:
            return found
        _, _, _, h, w = latents.shape
        return latents.new_zeros(port.shape({"h": h, "w": w}))


class DecoderGraph:
    """One chunk of a Wan decoder. Sizes that may vary: ``h``, ``w`` of the latents and, in a step, their frames ``t``.

    Latents are in the VAE's own scale, pixels are not clamped: as ``WanVae.decode_chunk`` has them.

    Args:
        model: in evaluation, all parameters in the precision that is wanted.
        first: for the first latent frame of a clip; else for the next ones.
    """

    def __init__(self, model: WanVae, *, first: bool) -> None:
        if model.training:
            raise CompileError("the model is in training; call .eval() first")
        self.model, self.first = model, first
        self.component = "decoder_first" if first else "decoder_step"
        self.form: Mapping[str, int | str] = {"batch": 1}
        self.precision: torch.dtype = model.post_quant_conv.weight.dtype
        self._carried = _carried(model, self.precision)
        config, dtype = model.config, self.precision
        space, channels = config.scale_factor_spatial, config.out_channels // (config.patch_size or 1) ** 2
        latents: tuple[int | Axis, ...] = (1, config.z_dim, 1 if first else Axis("t"), Axis("h"), Axis("w"))
        frames = 1 if first else Axis("t", config.scale_factor_temporal)
        video = Port("pixels", dtype, (1, channels, frames, Axis("h", space), Axis("w", space)))
        ports = [port for _, port in self._carried]
        past = () if first else tuple(Port(_PAST + port.name, port.dtype, port.dims) for port in ports)
        self.inputs = (Port("latents", dtype, latents), *past)
        self.outputs = (video, *(Port(_NEXT + port.name, port.dtype, port.dims) for port in ports))

    @property
    def module(self) -> nn.Module:
        return _Decoder(self.model, self._carried, first=self.first).eval()

    @staticmethod
    def turned(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What came out of one chunk, by the names under which it goes into the next."""
        return {_PAST + name.removeprefix(_NEXT): tensor for name, tensor in outputs.items() if name.startswith(_NEXT)}


def _carried(model: WanVae, dtype: torch.dtype) -> list[tuple[nn.Module, Port]]:
    """The modules that look back, in the order in which a step comes to them, each with what it keeps.

    Found by decoding two chunks of a few pixels that are not there: shapes alone are computed.
    """
    names = {module: name for name, module in model.named_modules()}
    h, w = 2, 3
    cache, device = _Carried({}, first=True), model.post_quant_conv.weight.device
    # With gradients the frames of a chunk pass a layer together, as they do in the graph.
    with torch.enable_grad(), references_only(), FakeTensorMode(allow_non_fake_inputs=True):
        latents = torch.zeros(1, model.config.z_dim, 1, h, w, dtype=dtype, device=device)
        for _ in range(2):
            model.decode_chunk(latents, cache)
    found = []
    for module, frames in cache._frames.items():
        _, c, t, y, x = frames.shape
        if (y % h, x % w, y // h) != (0, 0, x // w):
            raise CompileError(f"{names[module]} keeps frames of {y} x {x} for latents of {h} x {w}: no whole multiple")
        found.append((module, Port(names[module], dtype, (1, c, t, Axis("h", y // h), Axis("w", x // w)))))
    return found

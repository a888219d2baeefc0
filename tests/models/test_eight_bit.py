"""The transformer on eight-bit numbers: near the whole one, by as much as eight bits cost and no more."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glimt
from glimt.errors import RequestError
from glimt.models.linear import Linear, gated_add
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.transformer import Attention, Block, WanTransformer
from glimt_kernels import quantize_weight
from glimt_kernels.linear_quant.quantize import dequantize_rows, quantize_rows
from models import tiny

KINDS = ("int8", "fp8")


class Rounded(nn.Module):
    """A linear layer in float32 whose weight and input were rounded to eight bits and back."""

    def __init__(self, layer: Linear, kind: str) -> None:
        super().__init__()
        self.weight, self.bias, self.kind = quantize_weight(layer.weight, kind).dequantize(), layer.bias, kind

    def forward(
        self, x: Tensor, *, gelu: str | None = None, gate: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        y = F.linear(dequantize_rows(*quantize_rows(x, self.kind)), self.weight, self.bias)
        y = y if gelu is None else F.gelu(y, approximate=gelu)
        if residual is None:
            return y
        return residual + y if gate is None else gated_add(residual, y, gate)


def rounded(model: WanTransformer, kind: str) -> WanTransformer:
    """The same places by hand, attention whole."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        assert isinstance(block, Block)
        attention: Attention
        for attention, names in ((block.attn1, ("to_q", "to_k", "to_v")), (block.attn2, ())):
            for name in names:
                setattr(attention, name, Rounded(getattr(attention, name), kind))
            attention.to_out[0] = Rounded(attention.to_out[0], kind)
        block.ffn.net[0].proj = Rounded(block.ffn.net[0].proj, kind)
        block.ffn.net[2] = Rounded(block.ffn.net[2], kind)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v", "i2v-a14b", "ti2v"])
@torch.inference_mode()
def test_a_forward_is_as_near_as_its_rounded_products_are(variant: str, kind: str) -> None:
    reference = tiny.transformer(variant)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in reference.config.items()}
    model = WanTransformer(WanTransformerConfig.from_dict(config)).eval()
    model.load_state_dict(reference.state_dict())
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, model.config.in_channels, 3, 6, 10, generator=generator)
    text = torch.randn(2, 20, tiny.TEXT_DIM, generator=generator)
    rows = 2 * (2 if variant == "flf2v" else 1)
    image = torch.randn(rows, tiny.IMAGE_TOKENS, tiny.IMAGE_DIM, generator=generator)
    image = image if variant in ("i2v", "flf2v") else None
    # A timestep for each latent frame, so that a block has several gates.
    timesteps = (
        torch.tensor([[999.0, 371.5, 0.0], [20.0, 371.5, 700.0]]) if variant == "ti2v" else torch.tensor([999.0, 20])
    )
    whole = model(latents, timesteps, text, image)
    by_hand = rounded(model, kind)(latents, timesteps, text, image)
    model.quantize(kind)
    found = model(latents, timesteps, text, image)
    honest = tiny.relative_error(by_hand, whole)
    assert honest > 1e-4
    # Attention in eight bits comes on top: as much again at most.
    assert tiny.relative_error(found, whole) <= 2 * honest
    assert tiny.relative_error(found, by_hand) <= 2 * honest


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_in_eight_bits(kind: str) -> None:
    """Half the weights' bytes, the same clip to the eye; the plan knows the bytes before."""
    request = glimt.GenerateRequest(prompt="a red ball rolls left over a green floor", seed=7, num_inference_steps=3)
    with glimt.Engine.load() as engine:
        whole, weights = engine.generate(request), engine.plan(request).peak_bytes
    with glimt.Engine.load(precision=kind, quality="lossy") as engine:
        small = engine.generate(request)
        assert engine.plan(request).peak_bytes < weights
        held = sum(p.nbytes for p in engine._components.transformer(0).parameters())
        planned = engine._planner.weights_bytes["transformer"]
    assert abs(held - planned) < 0.02 * planned
    error = (small.frames.astype(float) - whole.frames.astype(float)) ** 2
    assert 0 < error.mean() < 255**2 / 10**2.5  # 25 dB
    assert small.provenance.config["precision"] == kind
    assert {"linear_w8a8", "attention_8bit"} <= set(small.report.implementations)


def test_eight_bits_want_the_class_that_they_are() -> None:
    for quality in ("equivalent", "exact"):
        with pytest.raises(RequestError, match=r"'int8' changes the picture \(class lossy\).*quality='lossy'"):
            glimt.EngineConfig(precision="int8", quality=quality)
    with pytest.raises(RequestError, match=r"precision: 'int9' is not one of .*did you mean 'int8'"):
        glimt.EngineConfig(precision="int9")

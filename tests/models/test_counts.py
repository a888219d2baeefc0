"""What one forward asks of a GPU at 480x832, 81 frames, in bfloat16: launches, and bytes by what moves them.

Counted on meta tensors by one counter for both: glimt as it runs in a request (the prompt's keys and values, the
timestep MLP and the rotary tables are made once per request, and counted apart), Diffusers as its pipeline calls it at
every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from glimt import profile
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.rope import RopeTables
from glimt.models.wan.transformer import WanTransformer, keeps_fp32
from glimt.shapes import TokenGrid
from glimt_kernels.count import Count

GRID = TokenGrid(21, 30, 52)
CONFIGS = {
    "1.3B": WanTransformerConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "14B": WanTransformerConfig(),
}


@dataclass(frozen=True)
class Bounds:
    """At most so many launches, and GB outside of products and attention, and GB in all."""

    launches: int
    other_gb: float
    all_gb: float


# 13 launches a block and a dozen around them. Diffusers' are what it takes at least, lest the comparison flatter.
GLIMT = {"1.3B": Bounds(450, 45, 145), "14B": Bounds(600, 190, 570)}
DIFFUSERS = {"1.3B": Bounds(2600, 500, 600), "14B": Bounds(3500, 2100, 2500)}


def halved(model: torch.nn.Module) -> torch.nn.Module:
    """In bfloat16, but for what stays float32 in both."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if keeps_fp32(name) else parameter.data.bfloat16()
    return model.eval()


def inputs(config: WanTransformerConfig) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.empty(1, 512, config.text_dim, dtype=torch.bfloat16, device="meta")
    return torch.empty(1, 16, GRID.t, 2 * GRID.y, 2 * GRID.x, device="meta"), text


@cache
def glimt(size: str, *, fused: bool = True, arch: int = 90, eight_bit: bool = False) -> tuple[Count, Count]:
    """(what is done once a request, one forward)."""
    config = CONFIGS[size]
    with torch.no_grad(), torch.device("meta"):
        model = WanTransformer(config)
        halved(model)
        if eight_bit:
            model.quantize("int8")
        elif fused:
            model.fuse()
        latents, text = inputs(config)
        half = (GRID.count, config.attention_head_dim // 2)
        rope = RopeTables(torch.empty(half), torch.empty(half))
        with Count(arch) as once:
            context, times = model.prepare_text(text), model.prepare_time(torch.empty(50))
            modulation = times.at(torch.zeros(1, 1, dtype=torch.long))
        with Count(arch) as count:
            out = model(latents, modulation, context, rope=rope)
    assert out.shape == latents.shape
    return once, count


@cache
def diffusers(size: str) -> Count:
    from diffusers import WanTransformer3DModel

    config = CONFIGS[size]
    names = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    values: dict[str, Any] = {name: getattr(config, name) for name in names}
    with torch.no_grad(), torch.device("meta"):
        model = halved(WanTransformer3DModel(**values))
        latents, text = inputs(config)
        with Count() as count:
            model(latents.bfloat16(), torch.empty(1), text, return_dict=False)
    return count


@pytest.mark.parametrize("size", CONFIGS)
def test_a_forward_takes_few_launches_and_moves_few_bytes(size: str) -> None:
    once, count = glimt(size)
    bounds, layers = GLIMT[size], CONFIGS[size].num_layers
    assert 13 * layers < count.launches <= bounds.launches
    assert count.traffic_bytes("other") <= bounds.other_gb * 1e9
    assert count.traffic_bytes() <= bounds.all_gb * 1e9
    kinds = [sum(call.kind == kind for call in count.calls) for kind in ("matrix", "attention")]
    assert kinds == [6 * layers + 2, 2 * layers]
    assert once.launches < 4 * layers + 30


@pytest.mark.parametrize("size", CONFIGS)
def test_diffusers_takes_six_times_the_launches_and_over_ten_times_the_bytes(size: str) -> None:
    theirs, (_, mine), bounds = diffusers(size), glimt(size), DIFFUSERS[size]
    assert theirs.launches >= max(bounds.launches, 6 * mine.launches)
    assert theirs.traffic_bytes("other") >= max(bounds.other_gb * 1e9, 10 * mine.traffic_bytes("other"))
    assert theirs.traffic_bytes() >= bounds.all_gb * 1e9


def test_three_products_where_the_weights_do_not_lie_together() -> None:
    layers = CONFIGS["1.3B"].num_layers
    assert glimt("1.3B", fused=False)[1].launches == glimt("1.3B")[1].launches + 2 * layers


@pytest.mark.parametrize("eight_bit", [False, True], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("size", CONFIGS)
def test_the_bytes_that_a_plan_shows_are_those_that_are_counted(size: str, eight_bit: bool) -> None:
    _, count = glimt(size, eight_bit=eight_bit)
    shown = profile.transformer_bytes(CONFIGS[size], GRID, 512, item_bytes=2, eight_bit=eight_bit)
    for kind in ("matrix", "attention", "other"):
        assert getattr(shown, kind) == pytest.approx(count.traffic_bytes(kind), rel=0.01), kind


def test_the_readme_says_what_is_counted() -> None:
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    for size in CONFIGS:
        both = glimt(size)[1], diffusers(size)
        launches = " / ".join(f"{count.launches:,}" for count in both)
        gigabytes = " / ".join(f"{count.traffic_bytes('other') / 1e9:,.0f}" for count in both)
        assert f"{size} {launches} launches, {gigabytes} GB" in text

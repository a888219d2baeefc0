"""attention_8bit: its kernel no worse than PyTorch in the same formats, and what the formats themselves cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from budget import check_budget, poison, random
from test_attention import HEADS, LENGTHS, SAMPLES, inputs, key_bias, make
from test_qk_norm_rope import EPS, angles
from torch import Tensor

import glimt_kernels as kernels
from glimt_kernels import attention, attention_8bit, attention_8bit_levels, dispatch, quantize_blocks, quantize_channels
from glimt_kernels.attention import eight_bit
from glimt_kernels.attention_8bit import api, launch, triton
from glimt_kernels.qk_norm_rope_8bit.reference import dequantize
from glimt_kernels.quantize_qkv.api import FP8

INT8, FP16 = torch.int8, torch.float16
FORMATS = [(INT8, FP8), (INT8, FP16), (FP8, FP8)]
Levels = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"]


def rounded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    formats: tuple[torch.dtype, torch.dtype],
    block: int = 128,
    mean: Tensor | None = None,
) -> Levels:
    qk, pv = formats
    values = quantize_channels(v, impl="reference") if pv == FP8 else (v.to(pv), None)
    queries = quantize_blocks(q.float(), block=block, dtype=qk, impl="reference")
    return (*queries, *quantize_blocks(k.float(), mean=mean, block=block, dtype=qk, impl="reference"), *values)


def in_their_formats(
    levels: Levels, bias: Tensor | None = None, block: int = 128, wide: bool = False, top: float = 256.0
) -> Tensor:
    """Attention in PyTorch of what the levels stand for: in float64, or in float32 with weights in the dtype of v.

    Weights in float8 are ``top`` at most.
    """
    q, q_scale, k, k_scale, v, v_scale = levels
    working = torch.float64 if wide else torch.float32
    queries, keys = (dequantize(*x, block).to(working).transpose(1, 2) for x in ((q, q_scale), (k, k_scale)))
    logits = queries @ keys.transpose(2, 3) * q.shape[3] ** -0.5
    if bias is not None:
        logits = logits + bias[:, None, None].to(working)
    highest = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - torch.where(highest == -math.inf, 0.0, highest))
    total = weights.sum(-1, keepdim=True)
    up = top if v.dtype == FP8 else 1.0
    narrow = weights if wide else (weights * up).to(v.dtype).to(working) / up
    values = v.to(working) * (1.0 if v_scale is None else v_scale[:, None].to(working))
    return (narrow @ values.transpose(1, 2) / torch.where(total == 0, 1.0, total)).transpose(1, 2)


def check(levels: Levels, what: str, bias: Tensor | None = None, block: int = 128) -> None:
    found = attention_8bit_levels(*levels, bias=bias, block=block, dtype=torch.float32, impl="triton")
    exact = in_their_formats(levels, bias, block, wide=True)
    check_budget(found, in_their_formats(levels, bias, block), exact, what)


def on_chip(monkeypatch: pytest.MonkeyPatch, arch: int) -> None:
    """Launch as on another chip."""
    real = triton.tiles
    monkeypatch.setattr(triton, "tiles", lambda _, *rest: real(arch, *rest))


def with_sink(at: int, bits: float, tokens: int = 9, keys: int = 263, head_dim: int = 64) -> list[Tensor]:
    """Queries that all give one key 2^bits times the weight of another, and this key's value is next to nothing."""
    q, k, v = make(tokens, keys, head_dim, torch.float32)
    towards = torch.nn.functional.normalize(random(1, 1, HEADS, head_dim, seed=9), dim=-1)
    k[:, at] = towards[:, 0] * bits * math.log(2) * head_dim**0.5 / 4
    v[:, at] *= 0.01
    return [q + 4 * towards, k, v]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize(("tokens", "keys"), LENGTHS)
def test_triton_within_budget(
    tokens: int, keys: int, formats: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    for bias, block in ((None, 128), (key_bias(keys), 64)):
        levels = rounded(*make(tokens, keys, 64, torch.float32, heads=1), formats, block)
        check(levels, f"bias {bias is not None}", bias, block)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize("name", list(inputs(2, 2, 8, torch.float32)))
def test_triton_within_budget_of_adversarial_inputs(name: str, formats: tuple[torch.dtype, torch.dtype]) -> None:
    check(rounded(*inputs(19, 67, 64, torch.float32)[name], formats), f"{name}, bias", key_bias(67))


@pytest.mark.parametrize("arch", [89, 90, 100])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_triton_within_budget_as_launched_elsewhere(arch: int, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    for tokens, keys, block in [(1, 1, 64), (131, 67, 128), (5, 263, 128)]:
        levels = rounded(*make(tokens, keys, head_dim, torch.float32, heads=1), (INT8, FP8), block)
        check(levels, f"{tokens} x {keys}", None, block)


@pytest.mark.parametrize("head_dim", [8, 40, 96, 136, 256])
@pytest.mark.parametrize("formats", FORMATS[:2], ids=str)
def test_triton_pads_any_head_dim(
    head_dim: int, formats: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    check(rounded(*make(5, 37, head_dim, torch.float32, heads=1), formats), f"head_dim {head_dim}")


@pytest.mark.parametrize("bits", [8, 13])
@pytest.mark.parametrize("at", [0, 262])
def test_a_sink_does_not_push_the_other_weights_below_float8(at: int, bits: float) -> None:
    """With weights of 1 at most, what is 2^-10 of the sink's is lost; with 256 it is not, wherever the sink is."""
    levels = rounded(*with_sink(at, bits), (INT8, FP8))
    exact = in_their_formats(levels, wide=True)
    found, careful, careless = (
        ((x.double() - exact).norm() / exact.norm()).item()
        for x in (
            attention_8bit_levels(*levels, dtype=torch.float32, impl="triton"),
            in_their_formats(levels),
            in_their_formats(levels, top=1.0),
        )
    )
    assert found < 1.1 * careful
    assert careless > 1.5 * found


def errors(x: Tensor, exact: Tensor) -> tuple[float, float]:
    difference = x.double() - exact
    return difference.norm().item(), difference.abs().max().item()


def everything(tokens: int = 65, keys: int = 131, head_dim: int = 64) -> dict[str, list[Tensor]]:
    found = {"plain": make(tokens, keys, head_dim, torch.float32), **inputs(tokens, keys, head_dim, torch.float32)}
    found["sink of no value"] = with_sink(0, 10, tokens, keys, head_dim)
    found["peaked"] = [found["plain"][0] * 3, *found["plain"][1:]]
    return {name: x for name, x in found.items() if name not in ("zeros", "one v", "denormals")}


@pytest.mark.parametrize("formats", [*FORMATS, (INT8, torch.bfloat16)], ids=str)
def test_the_quality_class_is_what_the_budget_says(formats: tuple[torch.dtype, torch.dtype]) -> None:
    """Equivalent: within the budget against float64 on all of these, beside PyTorch's attention of the same tensors.

    Without the kernel's own roundings, which the tests above bound: those can only add to this.
    """
    qk, pv = formats
    within = []
    for tensors in everything().values():
        for dtype in (torch.bfloat16, torch.float16):
            q, k, v = (x.to(dtype) for x in tensors)
            exact = attention(q.double(), k.double(), v.double(), impl="reference")
            plain = attention(q, k, v, impl="sdpa")
            found = attention_8bit(q, k, v, qk=qk, pv=pv, impl="reference")
            pairs = zip(errors(found, exact), errors(plain, exact), strict=True)
            within.append(all(mine <= 2 * other for mine, other in pairs))
    assert api.QUALITY[pv] == ("equivalent" if all(within) else "lossy")


def test_the_lossy_candidate_of_attention_runs_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make(19, 67, 64, FP16)
    found = attention(q, k, v, impl="eight_bit")
    assert torch.equal(found, attention_8bit(q, k, v, impl="triton"))
    torch.testing.assert_close(found, attention(q, k, v, impl="reference"), rtol=0.1, atol=0.05)
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    monkeypatch.setattr(api, "triton_reasons", lambda case: [])
    candidates = dispatch.candidates("attention")
    mine = next(c for c in candidates if c.impl == "eight_bit")
    alone = [c for c in candidates if c.impl in ("eight_bit", "reference")]
    for arch in (80, 86, 89, 90, 100, 120):
        case = kernels.Case("cuda", FP16, arch=arch)
        assert not eight_bit.reasons(case)
        assert "lossy" in mine.reluctance(case)[0]
        assert dispatch._choose(tuple(alone), case, None).impl == "reference"
    monkeypatch.setenv("GLIMT_IMPL_ATTENTION", "eight_bit")
    assert kernels.select("attention", kernels.Case("cuda", FP16, arch=90)).impl == "eight_bit"


@pytest.mark.parametrize("every", [1, 17])
def test_the_mean_of_some_keys_is_as_good_as_that_of_all(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SAMPLED", every)
    q, k, v = make(33, 263, 64, torch.float32)
    exact = attention(q.double(), k.double(), v.double(), impl="reference")
    shifted = k + 20 * random(1, 1, HEADS, 64, seed=7)

    def error(keys: Tensor, centred: bool) -> float:
        found = attention_8bit(q, keys, v, pv=FP16, centred=centred, impl="reference")
        return errors(found, exact)[0]

    assert error(shifted, True) < 1.2 * error(k, True)
    assert error(shifted, False) > 5 * error(k, True)


def test_the_producer_gives_what_the_quantizers_give() -> None:
    """qk_norm_rope_8bit, with the mean estimated and a factor in the scales of q, against norm, then rounding."""
    q, k, v = make(131, 131, 14, torch.float32)
    weight, tables = random(HEADS * 14, seed=2), angles(131, 14)
    mean = kernels.estimate_k_mean(k, weight, *tables, EPS)
    turned = kernels.qk_norm_rope(q, k, weight, weight, *tables, EPS)
    torch.testing.assert_close(mean, turned[1][:, ::17].mean(1), rtol=1e-5, atol=1e-6)
    factor = math.log2(math.e) / math.sqrt(14)
    levels = kernels.qk_norm_rope_8bit(q, k, weight, weight, *tables, EPS, q_factor=factor, k_mean=mean, block=64)
    values = quantize_channels(v)
    found = attention_8bit_levels(*levels, *values, block=64, scale=math.log(2), dtype=torch.float32, impl="triton")
    apart = attention_8bit(*turned, v, block=64, qk=INT8, pv=FP8, impl="triton")
    torch.testing.assert_close(found, apart, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="positive every, not 0"):
        kernels.estimate_k_mean(k, weight, *tables, EPS, every=0)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_fully_masked_sample_gives_zeros(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(7, 67, 32, torch.float32)
    bias = torch.zeros(SAMPLES, 67)
    bias[1] = -math.inf
    out = attention_8bit(q, k, v, bias=bias, impl=impl)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    torch.testing.assert_close(out[0], attention_8bit(q, k, v, impl="reference")[0], rtol=0.1, atol=0.03)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_without_keys_queries_or_samples(impl: str) -> None:
    q, k, v = make(5, 7, 32, torch.float32)
    assert torch.equal(attention_8bit(q, k[:, :0], v[:, :0], impl=impl), torch.zeros_like(q))
    assert attention_8bit(q[:, :0], k, v, impl=impl).shape == (SAMPLES, 0, HEADS, 32)
    assert attention_8bit(q[:0], k[:0], v[:0], impl=impl).shape == (0, 5, HEADS, 32)
    for x in (k[:, :0], k[:0]):
        for levels, scales in (quantize_blocks(x, impl=impl), quantize_channels(x, impl=impl)):
            assert levels.shape == x.shape
            assert scales.isfinite().all()


def test_any_strides_and_samples() -> None:
    fused = random(3, 19, 3, 2, 32, seed=3)
    q, k, v = fused.unbind(2)
    levels = rounded(q.contiguous(), k.contiguous(), v.contiguous(), (INT8, FP8))
    expected = attention_8bit_levels(*levels, dtype=torch.float32, impl="triton")
    torch.testing.assert_close(attention_8bit(q, k, v, centred=False, impl="triton"), expected)
    ql, qs, kl, ks, vl, vs = levels
    assert vs is not None
    apart = torch.zeros(3, 19, 2, 35, dtype=INT8)[..., 1:33]
    heads_first = kl.transpose(1, 2).contiguous().transpose(1, 2)
    turned = qs.transpose(1, 2).contiguous().transpose(1, 2)
    for change in (
        {"q": apart.copy_(ql), "k": heads_first, "q_scale": turned},
        {"v": vl.contiguous()},
        {"k": kl.mT.contiguous().mT, "v_scale": vs.mT.contiguous().mT},
    ):
        tensors = {"q": ql, "q_scale": qs, "k": kl, "k_scale": ks, "v": vl, "v_scale": vs, **change}
        assert torch.equal(attention_8bit_levels(**tensors, dtype=torch.float32, impl="triton"), expected)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_out_is_written_and_returned(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(19, 31, 32, FP16)
    expected = attention_8bit(q, k, v, impl=impl)
    assert expected.dtype == FP16
    for out in (torch.empty_like(q), torch.empty(SAMPLES, 19, 3, HEADS, 32).half()[:, :, 1], torch.empty_like(q.mT).mT):
        assert attention_8bit(q, k, v, out=out, impl=impl) is out
        assert torch.equal(out, expected)


def test_plain_tensors_in_compiled_and_exported_graphs() -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention_8bit(q, k, v)

    tensors = tuple(make(5, 7, 32, torch.float32))
    expected = attention_8bit(*tensors)
    exported = torch.export.export(Module(), tensors)
    for name in ("quantize_blocks", "quantize_channels", "attention_8bit"):
        assert f"glimt.{name}" in exported.graph_module.code
    for program in (exported.module(), torch.compile(Module(), backend="eager", fullgraph=True)):
        assert torch.equal(program(*tensors), expected)


def test_an_exported_graph_takes_any_number_of_tokens() -> None:
    """Beyond one block, multiples of 16 or not; what the graph is not for is refused by the guard that says so."""

    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention_8bit(q, k, v)

    dynamic = {1: torch.export.Dim.DYNAMIC}
    example = tuple(make(150, 150, 32, torch.float32, heads=1))
    program = torch.export.export(Module(), example, dynamic_shapes=(dynamic,) * 3).module()
    for tokens in (129, 131, 256, 263):
        tensors = make(tokens, tokens, 32, torch.float32, heads=1)
        assert torch.equal(program(*tensors), attention_8bit(*tensors)), tokens
    with pytest.raises(AssertionError, match=r"Guard failed: .*128 != 1"):
        program(*make(100, 100, 32, torch.float32, heads=1))
    compiled = torch.compile(Module(), backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(*example), attention_8bit(*example))  # the scale is a number of a graph there


def test_there_is_no_gradient() -> None:
    q, k, v = (x.requires_grad_() for x in make(5, 7, 32, torch.float32))
    bias = torch.zeros(SAMPLES, 7, requires_grad=True)
    assert not attention_8bit(q, k, v, bias=bias, impl="triton").requires_grad
    assert not any(x.requires_grad for x in quantize_blocks(k, mean=k.mean(1)))


@pytest.mark.parametrize("head_dim", [14, 64])
@pytest.mark.parametrize("eight", [INT8, FP8], ids=str)
def test_quantizers_in_triton_give_the_reference(
    head_dim: int, eight: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(2, 131, 3, head_dim, seed=1)
    x[:, :, 1, 3] *= 1e4
    x[:, :, 2] *= 1e-38
    x[:, :64, 0] = 0
    mean = random(2, 3, head_dim, seed=2)
    for block, centre, source in (
        (64, mean, x),
        (128, None, x.half()),
        (64, mean.half(), x.half()[:, ::2]),
        (64, mean, x[:, -1:]),
        (64, 9 * mean, x + 9 * mean[:, None]),  # far from zero, as keys are
    ):
        expected = quantize_blocks(source, mean=centre, block=block, dtype=eight, impl="reference")
        with monkeypatch.context() as context:
            poison(context)
            found = quantize_blocks(source, mean=centre, block=block, dtype=eight, impl="triton")
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)
        step = 1 if eight == INT8 else 32  # of the largest levels; both round alike but at ties
        assert (found[0].float() - expected[0].float()).abs().max() <= step
        assert (found[0].float() != expected[0].float()).float().mean() < 0.01
    for source in (x, x.half()[:, ::3], x[:, :, :, : head_dim - 2], x[:, -1:]):
        expected = quantize_channels(source, impl="reference")
        with monkeypatch.context() as context:
            poison(context)
            found = quantize_channels(source, impl="triton")
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)
        assert (found[0].float() - expected[0].float()).abs().max() <= 32
        assert found[0].stride() == expected[0].stride()
        assert (found[0].float() != expected[0].float()).float().mean() < 0.01


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(where: str, impl: str, bad: float) -> None:
    tensors = dict(zip("qkv", make(150, 67, 32, torch.float32, heads=1), strict=True))
    tensors[where][0, 30, 0, 4] = bad
    part = {
        "q": quantize_blocks(tensors["q"], impl=impl),
        "k": quantize_blocks(tensors["k"], impl=impl),
        "v": quantize_channels(tensors["v"], impl=impl),
    }
    out = attention_8bit_levels(*part["q"], *part["k"], *part["v"], dtype=torch.float32, impl=impl)
    spoiled = {"q": out[0, :128], "k": out[0], "v": out[0, ..., 4]}[where]
    assert not spoiled.isfinite().any()
    assert out[1].isfinite().all()
    assert where != "q" or out[0, 128:].isfinite().all()


def test_reasons_name_the_format_that_is_missing() -> None:
    ampere = kernels.Case("cuda", None, arch=86, sizes=api.Call(128, fp8=1))
    with pytest.raises(kernels.UnsupportedError, match="float8_e4m3fn needs sm_89 or newer, the device is sm_86; take"):
        kernels.select("attention_8bit", ampere, "triton")
    assert kernels.select("attention_8bit", ampere).impl == "reference"
    assert kernels.select("attention_8bit", ampere._replace(sizes=api.Call(128))).impl == "triton"
    with pytest.raises(kernels.UnsupportedError, match="at most 256, found 264"):
        kernels.select("attention_8bit", ampere._replace(sizes=api.Call(264)), "triton")
    with pytest.raises(kernels.UnsupportedError, match="bfloat16 wrongly"):
        kernels.select("attention_8bit", kernels.Case("cpu", None, sizes=api.Call(64, bf16=1)), "triton")
    with pytest.raises(kernels.UnsupportedError, match="sm_89 or newer"):
        kernels.select("quantize_channels", kernels.Case("cuda", FP16, arch=80), "triton")
    assert api.preferred(80, torch.bfloat16) == (INT8, torch.bfloat16)
    assert api.preferred(86, FP16) == (INT8, FP16)
    assert api.preferred(89, FP16) == api.preferred(0, FP16) == api.preferred(120, FP16) == (INT8, FP8)
    assert api.preferred(100, FP16) == (FP8, FP8)


def test_what_does_not_fit_is_refused_with_all_that_is_wrong() -> None:
    q, k, v = make(3, 5, 16, torch.float32)
    ql, qs, kl, ks, vl, vs = rounded(q, k, v, (INT8, FP8))
    right = {"q": ql, "q_scale": qs, "k": kl, "k_scale": ks, "v": vl, "v_scale": vs}
    wrong: list[tuple[str, dict[str, Any]]] = [
        (
            r"k must be \[2, 5, 2, 16\], found \[2, 5, 1, 16\].*scale must be positive",
            {"k": kl[:, :, :1], "scale": 0.0},
        ),
        (r"k_scale must be \[2, 2, 1\], found \[2, 2, 2\]", {"k_scale": ks.repeat(1, 1, 2)}),
        (r"v must be \[2, 5, 2, 16\], found \[2, 4, 2, 16\]", {"v": vl[:, :4]}),
        ("found torch.float16, a v_scale", {"v": v.half()}),
        ("found torch.float8_e4m3fn, no v_scale", {"v_scale": None}),
        ("must both be int8 or float8_e4m3fn, found torch.int8 and torch.float32", {"k": k}),
        (
            "go with v of that dtype, found torch.float16",
            {"q": ql.to(FP8), "k": kl.to(FP8), "v": v.half(), "v_scale": None},
        ),
        (r"bias must be \[2, 5\], found \[2, 4\]", {"bias": torch.zeros(2, 4)}),
        ("bias must be floating", {"bias": torch.zeros(2, 5, dtype=torch.bool)}),
        (r"q_scale must be float32, found torch\.float16", {"q_scale": qs.half()}),
        ("block 64 or 128, not 32", {"block": 32}),
        ("dtype must be bfloat16, float16 or float32", {"dtype": torch.float64}),
        (r"and that of out; found torch.bfloat16 and out torch.float32", {"out": torch.empty_like(q)}),
        (r"found q \[3, 2, 16\]", {"q": ql[0]}),
    ]
    for match, changed in wrong:
        with pytest.raises(ValueError, match=match):
            attention_8bit_levels(**{**right, **changed})
    with pytest.raises(ValueError, match="float64"):
        attention_8bit(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match=r"takes pv float8_e4m3fn, float16 or bfloat16; found torch\.int8"):
        attention_8bit(q, k, v, pv=INT8)
    with pytest.raises(ValueError, match=r"here \[2, 2, 16\]; found \[2, 16\]"):
        quantize_blocks(q, mean=q[:, 0, 0])
    with pytest.raises(ValueError, match=r"floating; found \[2, 3, 2, 16\] torch.int8"):
        quantize_channels(ql)
    with pytest.raises(ValueError, match="quantize_blocks takes block 64 or 128, not 1"):
        quantize_blocks(q, block=1)


def test_each_launch_shape_is_built() -> None:
    built = {(b.archs[0], b.case) for b in triton.BUILDS if b.op == "attention_8bit"}
    for arch in (80, 86, 89, 90, 100, 120):
        for formats in ("int8 fp16", "int8 bf16", *(("int8 fp8", "fp8 fp8") if arch >= 89 else ())):
            for head_dim in (64, 128):
                assert (arch, f"{formats} {head_dim} block 128 self") in built
    for build in triton.BUILDS:
        if build.op == "attention_8bit":  # a block of keys has one scale
            assert build.constants["GROUP"] % build.constants["BLOCK_N"] == 0
    assert launch.tiles(121, INT8, FP8, 128, 128) == launch.tiles(120, INT8, FP8, 128, 128)


def table(tokens: int = 1024, head_dim: int = 128) -> str:
    """README's table of errors: relative L2 against float64, inputs in bfloat16, weights rounded as in the kernel."""
    columns = ["PyTorch", *("+".join(str(x).removeprefix("torch.") for x in pair) for pair in FORMATS), "not centred"]
    lines = [f"| {' | '.join(['inputs', *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for name, tensors in everything(tokens, tokens, head_dim).items():
        q, k, v = (x.bfloat16() for x in tensors)
        exact = attention(q.double(), k.double(), v.double(), impl="reference")
        mean = k[:, :: api.SAMPLED].mean(1, dtype=torch.float32)
        found = [attention(q, k, v, impl="sdpa"), *(in_their_formats(rounded(q, k, v, f, mean=mean)) for f in FORMATS)]
        found.append(in_their_formats(rounded(q, k, v, FORMATS[0])))
        relative = [errors(x, exact)[0] / exact.norm().item() for x in found]
        lines.append(f"| {name} | {' | '.join(f'{x:.2%}' for x in relative)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

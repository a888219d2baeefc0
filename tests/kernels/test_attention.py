"""attention: within the budget against float64, also for the inputs that break softmax kernels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from budget import HALVES, attention_of, check_budget, poison, random
from torch import Tensor

import glimt_kernels as kernels
from glimt_kernels import attention, dispatch
from glimt_kernels.attention import api, flash_attn, triton
from glimt_kernels.attention.call import HALVES as HALF_DTYPES
from glimt_kernels.attention.call import Call
from glimt_kernels.triton_env import ARCHS

# Queries and keys: a 1, primes, beside and at a multiple of the blocks of 32, 64 and 128.
LENGTHS = [(1, 1), (7, 31), (131, 33), (32, 128), (5, 263)]
SAMPLES, HEADS = 2, 2


def make(tokens: int, keys: int, head_dim: int, dtype: torch.dtype, heads: int = HEADS) -> list[Tensor]:
    shapes = [(SAMPLES, n, heads, head_dim) for n in (tokens, keys, keys)]
    return [random(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]


def check(q: Tensor, k: Tensor, v: Tensor, what: str, bias: Tensor | None = None, impl: str = "triton") -> None:
    mask = None if bias is None else bias[:, None, None]
    exact = attention_of(q.double(), k.double(), v.double(), mask=mask)
    check_budget(attention(q, k, v, bias=bias, impl=impl), attention_of(q, k, v, mask=mask), exact, what)


def on_chip(monkeypatch: pytest.MonkeyPatch, arch: int) -> None:
    """Launch as on another chip."""
    real = triton.tiles
    monkeypatch.setattr(triton, "tiles", lambda _, *rest: real(arch, *rest))


def key_bias(keys: int) -> Tensor:
    """The first sample has holes and a key that stands for 37; the second is masked but for its last key."""
    bias = torch.zeros(SAMPLES, keys)
    bias[0, ::3], bias[0, -1] = -math.inf, math.log(37)
    bias[1, :-1] = -math.inf
    return bias


def inputs(tokens: int, keys: int, head_dim: int, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """Attention as it is in trained networks, and as it should not be."""
    plain = make(tokens, keys, head_dim, dtype)
    found = {name: [x.clone() for x in plain] for name in ("sink", "outlier", "k mean", "denormals")}
    q, k, _ = found["sink"]
    k[:, 0] = q.mean(1) * 30  # one key takes nearly everything
    found["outlier"][0][..., 3] *= 100
    found["outlier"][1][..., 3] *= 100
    found["outlier"][2][..., 5] *= 1000
    found["k mean"][1].add_(50)
    tiny = 1e-6 if dtype == torch.float16 else 1e-40
    found["denormals"] = [(random(*x.shape, seed=5) * tiny).to(dtype) for x in plain]
    return {
        **found,
        "zeros": [torch.zeros_like(x) for x in plain],
        "one v": [*plain[:2], torch.full_like(plain[2], 3.7)],
    }


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tokens", "keys"), LENGTHS)
def test_triton_within_budget(tokens: int, keys: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for bias in (None, key_bias(keys)):
        check(*make(tokens, keys, 64, dtype, heads=1), f"bias {bias is not None}", bias)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", list(inputs(2, 2, 8, torch.float32)))
def test_triton_within_budget_of_adversarial_inputs(name: str, dtype: torch.dtype) -> None:
    q, k, v = inputs(19, 67, 64, dtype)[name]
    check(q, k, v, name)
    check(q, k, v, f"{name}, bias", key_bias(67))


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_triton_overlapped_within_budget(arch: int, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.tiles(arch, torch.float16, head_dim).tma
    poison(monkeypatch)
    on_chip(monkeypatch, arch)
    for tokens, keys in [(1, 1), (131, 67), (5, 263), (3, 128)]:
        q, k, v = make(tokens, keys, head_dim, torch.float16, heads=1)
        check(q, k, v, f"{tokens} x {keys}")
    check(q, k, v, "bias", key_bias(128))
    check(*inputs(5, 131, head_dim, torch.float16)["sink"], "sink")


@pytest.mark.parametrize("head_dim", [8, 32, 33, 40, 72, 96, 136, 200, 256])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_pads_any_head_dim(head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    check(*make(5, 37, head_dim, dtype, heads=1), f"head_dim {head_dim}")


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_takes_any_number_of_samples(samples: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = (random(samples, n, HEADS, 32, seed=seed).to(dtype) for seed, n in enumerate((5, 37, 37)))
    check(q, k, v, f"{samples} samples")


@pytest.mark.parametrize("impl", ["triton", "sdpa", "reference"])
def test_a_fully_masked_sample_gives_zeros(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(7, 67, 32, torch.float32)
    bias = torch.zeros(SAMPLES, 67)
    bias[1] = -math.inf
    out = attention(q, k, v, bias=bias, impl=impl)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    torch.testing.assert_close(out[0], attention(q, k, v, impl="reference")[0], rtol=1e-5, atol=1e-5)
    if impl != "sdpa":
        _, lse = attention(q, k, v, bias=bias, return_lse=True, impl=impl)
        assert (lse[1] == -math.inf).all()
        assert lse[0].isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("keys", [1, 67])
def test_triton_gives_the_log_of_the_sum(keys: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(19, keys, 64, dtype)
    for bias in (None, key_bias(keys)):
        out, lse = attention(q, k, v, bias=bias, return_lse=True, impl="triton")
        exact = attention(q.double(), k.double(), v.double(), bias=bias, return_lse=True)[1]
        # The products of halves are exact in float32: what is wrong is the float32 arithmetic alone.
        plain = attention(q.float(), k.float(), v.float(), bias=bias, return_lse=True, impl="reference")[1]
        check_budget(lse, plain, exact, "lse")
        assert torch.equal(out, attention(q, k, v, bias=bias, impl="triton"))


@pytest.mark.parametrize("impl", ["triton", "sdpa", "reference"])
def test_without_keys_queries_or_samples(impl: str) -> None:
    q, k, v = make(5, 7, 32, torch.float32)
    out = attention(q, k[:, :0], v[:, :0], impl=impl)
    assert torch.equal(out, torch.zeros_like(q))
    assert attention(q[:, :0], k, v, impl=impl).shape == (SAMPLES, 0, HEADS, 32)
    assert attention(q[:0], k[:0], v[:0], impl=impl).shape == (0, 5, HEADS, 32)
    if impl != "sdpa":
        lse = attention(q, k[:, :0], v[:, :0], return_lse=True, impl=impl)[1]
        assert (lse == -math.inf).all()
        assert lse.shape == (SAMPLES, HEADS, 5)


@pytest.mark.parametrize("impl", ["triton", "sdpa"])
def test_any_strides(impl: str) -> None:
    qkv = random(3, 19, 3, 2, 32, seed=3)
    q, k, v = qkv.unbind(2)  # slices of a fused projection
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    channels_apart = v.transpose(2, 3).contiguous().transpose(2, 3)
    shared = v[:1].expand(3, -1, -1, -1)
    for keys, values in ((k, v), (heads_first, channels_apart), (k[:, ::2], v[:, ::2]), (k, shared)):
        found = attention(q, keys, values, impl=impl)
        expected = attention(q.contiguous(), keys.contiguous(), values.contiguous(), impl="reference")
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_tma_cannot_describe_takes_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    on_chip(monkeypatch, 90)
    q, k, v = make(5, 67, 64, torch.float16)
    odd = torch.zeros(SAMPLES, 67, HEADS, 67, dtype=torch.float16)[..., 2:66]
    shared = k[:1].expand(SAMPLES, -1, -1, -1)
    assert triton.describable(k)
    assert triton.describable(k[:1, :, :1])
    assert not triton.describable(odd)
    assert not triton.describable(shared)
    expected = attention(q, k, v, impl="reference")
    torch.testing.assert_close(attention(q, odd.copy_(k), v, impl="triton"), expected, rtol=2e-3, atol=2e-3)
    expected = attention(q, shared, v, impl="reference")
    torch.testing.assert_close(attention(q, shared, v, impl="triton"), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("impl", ["triton", "sdpa", "reference"])
def test_out_is_written_and_returned(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    q, k, v = make(19, 31, 32, torch.float32)
    expected = attention(q, k, v, impl=impl)
    for out in (torch.empty(q.shape), torch.empty(SAMPLES, 19, 3, HEADS, 32)[:, :, 1], torch.empty(q.mT.shape).mT):
        assert attention(q, k, v, out=out, impl=impl) is out
        assert torch.equal(out, expected)
    if impl != "sdpa":
        out = torch.empty(q.shape)
        found, lse = attention(q, k, v, out=out, return_lse=True, impl=impl)
        assert found is out
        assert torch.equal(out, expected)
        assert torch.equal(lse, attention(q, k, v, return_lse=True, impl=impl)[1])


def test_out_inside_a_compiled_graph() -> None:
    q, k, v = make(5, 7, 32, torch.float32)

    def both(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return attention(q, k, v, out=out), *attention(q, k, v, out=out.clone(), return_lse=True)

    eager, compiled = (f(torch.empty(q.shape)) for f in (both, torch.compile(both, backend="eager", fullgraph=True)))
    for mine, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", ["triton", "sdpa", "reference"])
def test_a_shift_of_the_logits_changes_nothing(impl: str) -> None:
    """Adding one vector to every key, or one number to every bias, adds the same to all logits of a query."""
    q, k, v = make(19, 67, 32, torch.float32)
    expected = attention(q, k, v, impl=impl)
    shifted = attention(q, k + random(HEADS, 32, seed=8), v, impl=impl)
    torch.testing.assert_close(shifted, expected, rtol=1e-5, atol=1e-5)
    biased = attention(q, k, v, bias=torch.full((SAMPLES, 67), 30.0), impl=impl)
    torch.testing.assert_close(biased, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "sdpa"])
def test_a_key_with_a_log_bias_counts_as_often(impl: str) -> None:
    """How padding of a text that is n equal keys is folded into one."""
    q, k, v = make(7, 5, 32, torch.float32)
    copies = [torch.cat([x, x[:, -1:].expand(-1, 40, -1, -1)], 1) for x in (k, v)]
    bias = torch.zeros(SAMPLES, 5)
    bias[:, -1] = math.log(41)
    found = attention(q, k, v, bias=bias, impl=impl)
    torch.testing.assert_close(found, attention(q, *copies, impl="reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", [80, 90])
def test_parts_join_by_their_log_sums(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    on_chip(monkeypatch, arch)
    q, k, v = make(7, 150, 64, torch.float16)
    parts = [attention(q, k[:, s], v[:, s], return_lse=True, impl="triton") for s in (slice(97), slice(97, None))]
    shares = torch.softmax(torch.stack([lse for _, lse in parts]), 0).transpose(2, 3)[..., None]
    joined = sum(share * out.float() for share, (out, _) in zip(shares, parts, strict=True))
    torch.testing.assert_close(joined.half(), attention(q, k, v, impl="triton"), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_is_not_hidden(where: str) -> None:
    q, k, v = make(3, 67, 32, torch.float32)
    {"q": q, "k": k, "v": v}[where][:, 1, :, 4] = math.nan
    assert attention(q, k, v, impl="triton").isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
def test_sdpa_within_budget(dtype: torch.dtype) -> None:
    for bias in (None, key_bias(67)):
        check(*make(19, 67, 64, dtype), "sdpa", bias, impl="sdpa")
    check(*make(19, 67, 384, dtype), "sdpa, head_dim of a VAE", impl="sdpa")


def test_the_weights_of_the_reference_are_exact_where_logits_are_thousands() -> None:
    """Logits of 4096 and 4096 - 1/32, both exact: from the log of their sum, rounded, weights would be off by 1e-4."""
    q, k = torch.full((1, 1, 1, 16), 128.0), torch.full((1, 2, 1, 16), 8.0)
    k[0, 1, 0, 0] -= 1 / 1024
    v = torch.eye(2, 16)[None, :, None]
    exact = torch.softmax(torch.tensor([1 / 32, 0.0], dtype=torch.float64), 0)
    found = attention(q, k, v, impl="reference")[0, 0, 0, :2]
    torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=0)


def test_the_largest_scale_and_the_smallest() -> None:
    q, k, v = make(3, 67, 32, torch.float32)
    for scale in (1e-6, 1.0, 20.0):
        found = attention(q, k, v, scale=scale, impl="triton")
        exact = attention_of(q.double(), k.double(), v.double(), scale)
        check_budget(found, attention_of(q, k, v, scale), exact, f"scale {scale}")


def case(arch: int, dtype: torch.dtype = torch.bfloat16, **call: int) -> kernels.Case:
    described = Call(dtype=[torch.float32, torch.float16, torch.bfloat16, torch.float64].index(dtype))._replace(**call)
    return kernels.Case("cuda" if arch else "cpu", dtype, False, arch, tuple(described))


def test_the_order_on_each_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [candidate.impl for candidate in dispatch.candidates("attention")]
    assert all(set(order) <= set(names) for order in api.PREFERRED.values())
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(flash_attn, "_installed", lambda name: name == "flash_attn_interface")
    monkeypatch.setattr(api, "triton_reasons", lambda case, dtypes: [] if case.dtype in dtypes else ["dtype"])
    chosen = {arch: kernels.select("attention", case(arch)).impl for arch in (0, 80, 86, 89, 90, 100, 103, 120, 121)}
    assert chosen == {
        **dict.fromkeys((80, 86, 89, 120, 121), "triton"),
        0: "sdpa",
        90: "flash_attn",
        100: "cudnn",
        103: "cudnn",
    }
    assert kernels.select("attention", case(90, biased=1)).impl == "triton"
    assert kernels.select("attention", case(90, keys=1)).impl == "triton"
    assert kernels.select("attention", case(90, head_dim=192)).impl == "flash_attn"
    assert kernels.select("attention", case(80, torch.float32)).impl == "sdpa"
    assert kernels.select("attention", case(80, torch.float64)).impl == "reference"
    assert kernels.select("attention_lse", case(90)).impl == "triton"
    for arch, head_dim in itertools.product((0, *ARCHS), (384, 1024)):  # the one head of Wan's autoencoders
        assert kernels.select("attention", case(arch, head_dim=head_dim)).impl == "sdpa"


def test_libraries_say_why_they_cannot() -> None:
    for impl in ("flash_attn", "cudnn", "flashinfer", "sage"):
        candidate = next(c for c in dispatch.candidates("attention") if c.impl == impl)
        reasons = "; ".join(kernels.unsupported_reasons(candidate, case(0, torch.float32, head_dim=300, biased=1)))
        for part in ("CUDA", "float32", "bias", "300", "install"):
            assert part in reasons, (impl, reasons)
    lossy = next(c for c in dispatch.candidates("attention") if c.impl == "sage")
    assert "lossy" in lossy.reluctance(case(90))[0]
    q, k, v = make(3, 5, 32, torch.float32)
    other = next(c for c in dispatch.candidates("attention") if c.impl == "flashinfer")
    assert "64, 128, 256, found 96" in "; ".join(kernels.unsupported_reasons(other, case(90, head_dim=96)))
    assert "not preferred" in other.reluctance(case(90))[0]
    with pytest.raises(kernels.UnsupportedError, match="log-sum-exp"):
        attention(q, k, v, return_lse=True, impl="sdpa")
    with pytest.raises(kernels.UnsupportedError, match="at most 256, found 264"):
        attention(*make(3, 5, 264, torch.float32), impl="triton")


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = make(3, 5, 16, torch.float32)
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"k \[2, 5, 1, 16\]", {"k": k[:, :, :1]}),
        (r"v \[2, 4, 2, 16\]", {"v": v[:, :4]}),
        (r"k \[2, 5, 2, 16\] torch.float16", {"k": k.half()}),
        (r"bias \[2, 4\]", {"bias": torch.zeros(2, 4)}),
        (r"bias \[2, 5\] torch.bool", {"bias": torch.zeros(2, 5, dtype=torch.bool)}),
        (r"out \[2, 5, 2, 16\]", {"out": torch.zeros_like(k)}),
        (r"q \[3, 2, 16\]", {"q": q[0]}),
        ("positive scale", {"scale": 0.0}),
        ("positive scale", {"scale": math.nan}),
    ]
    for match, changed in wrong:
        with pytest.raises(ValueError, match=match):
            attention(**{"q": q, "k": k, "v": v, **changed})


def test_each_launch_shape_is_built() -> None:
    built = {
        (b.archs[0], b.case.split()[0], b.constants["HEAD_DIM"], b.constants["WAY"] != "plain") for b in triton.BUILDS
    }
    for arch in (80, 86, 89, 90, 100, 120):
        for dtype in ("bf16", "fp16"):
            for head_dim in (64, 128):
                assert (arch, dtype, head_dim, arch in (90, 100)) in built

"""qk_norm_rope_8bit: no worse than PyTorch's own quantization of PyTorch's own norm and rotation, in any order."""

from __future__ import annotations

import math

import pytest
import torch
from budget import HALVES, adversarial, check_budget, poison, random
from test_qk_norm_rope import EPS, FORMS, angles, honest
from torch import Tensor

from glimt_kernels import Case, UnsupportedError, qk_norm_rope, select
from glimt_kernels.qk_norm_rope.reference import arrange
from glimt_kernels.qk_norm_rope_8bit.api import qk_norm_rope_8bit
from glimt_kernels.qk_norm_rope_8bit.reference import dequantize, quantize

DTYPES = (torch.int8, torch.float8_e4m3fn)
FACTOR = math.log2(math.e) / math.sqrt(14)


def plain_quantization(x: Tensor, dtype: torch.dtype, block: int) -> Tensor:
    """The values after PyTorch's own rounding to 8 bits, block by block: x [B, N, heads, head_dim]."""
    out = torch.empty_like(x, dtype=torch.float32)
    for part, whole in zip(out.split(block, 1), x.float().split(block, 1), strict=True):
        scale = whole.abs().amax((1, 3), keepdim=True).clamp(min=2**-100) / (127 if dtype == torch.int8 else 448)
        level = (whole / scale).round() if dtype == torch.int8 else (whole / scale).to(dtype).float()
        part.copy_(level * scale)
    return out


@pytest.mark.parametrize("eight", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_within_budget(dtype: torch.dtype, eight: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    tables = [table.to(dtype) for table in angles(67, 14)]
    weights = random(42, seed=2).to(dtype), random(42, seed=3).to(dtype)
    inputs = adversarial(1, 67, 3, 14, dtype=dtype)
    for name, x in inputs.items():
        found = qk_norm_rope_8bit(x, x, *weights, *tables, EPS, dtype=eight, block=64, q_factor=FACTOR, impl="triton")
        for level, scale, weight, factor in ((*found[:2], weights[0], FACTOR), (*found[2:], weights[1], 1.0)):
            assert level.dtype == eight
            exact = honest(*(t.double() for t in (x, weight, *tables)))
            plain = plain_quantization(honest(x, weight, *tables), eight, 64)
            check_budget(dequantize(level, scale, 64), plain * factor, exact * factor, name)


@pytest.mark.parametrize("eight", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 131])
def test_every_form(
    form: tuple[bool, str, bool], eight: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    per_head, pairs, table_heads = form
    tables = angles(tokens, 14, *([3] if table_heads else []))
    weight = random(14 if per_head else 42, seed=2)
    q, k = random(2, tokens, 3, 14), random(2, tokens, 3, 14, seed=1)
    found = qk_norm_rope_8bit(
        q, k, weight, weight, *tables, EPS, per_head=per_head, pairs=pairs, dtype=eight, impl="triton"
    )
    for level, scale, x in ((*found[:2], q), (*found[2:], k)):
        exact = honest(*(t.double() for t in (x, weight, *tables)), per_head, pairs)
        plain = plain_quantization(honest(x, weight, *tables, per_head, pairs), eight, 128)
        check_budget(dequantize(level, scale, 128), plain, exact)
        assert level.is_contiguous()
        assert scale.shape == (2, 3, -(-tokens // 128))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_large_mean_of_the_keys(impl: str) -> None:
    """With the mean taken out, keys are as exact as if they had none; without it their levels are coarse."""
    weight, tables = random(42, seed=2), (torch.ones(70, 7), torch.zeros(70, 7))
    k = random(2, 70, 3, 14) + 30 * random(1, 1, 3, 14, seed=1)
    turned = honest(k.double(), weight.double(), *(t.double() for t in tables))
    mean = turned.mean(1)
    centred, coarse = (
        dequantize(*qk_norm_rope_8bit(k, k, weight, weight, *tables, EPS, k_mean=m, impl=impl)[2:], 128)
        for m in (mean.float(), None)
    )
    exact = turned - mean[:, None]
    plain = plain_quantization((honest(k, weight, *tables) - mean[:, None].float()), torch.int8, 128)
    check_budget(centred, plain, exact)
    assert (coarse - turned).norm() > 5 * (centred - exact).norm()


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_order_and_empty_places(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are of places; a place that no token has is zero, even where a mean is subtracted."""
    q, k, weight, tables = random(2, 67, 3, 14), random(2, 67, 3, 14, seed=1), random(42, seed=2), angles(67, 14)
    order = torch.cat([torch.randperm(67, generator=torch.Generator().manual_seed(0)), torch.full((9,), -1)]).roll(5)
    order[40] = 67
    mean = random(2, 3, 14, seed=3) * 40
    args = (q, k, weight, weight, *tables, EPS)
    found = qk_norm_rope_8bit(*args, block=64, k_mean=mean, order=order.to(kind), impl="reference")
    turned_q, turned_k = qk_norm_rope(*args, impl="reference")
    turned_k = turned_k - mean[:, None]
    for level, scale, x in ((*found[:2], turned_q), (*found[2:], turned_k)):
        rows = torch.zeros(2, 76, 3, 14)
        for place, token in enumerate(order.tolist()):
            if 0 <= token < 67:
                rows[:, place] = x[:, token]
        assert torch.equal(arrange(x, order), rows)
        expected, scales = quantize(rows, 64, torch.int8)
        assert torch.equal(level, expected)
        assert torch.equal(scale, scales)
        assert not level[:, 40].any()
    poison(monkeypatch)
    mine = qk_norm_rope_8bit(*args, block=64, k_mean=mean, order=order.to(kind), impl="triton")
    for a, b in zip(mine[1::2], found[1::2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
    for a, b in zip(mine[::2], found[::2], strict=True):
        assert (a.int() - b.int()).abs().max() <= 1
        assert ((a != b).float().mean()) < 0.01


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_any_number_of_samples_and_strides(samples: int) -> None:
    fused = random(samples, 7, 3 * 4 * 10)
    q, k, _ = (part.unflatten(2, (4, 10)) for part in fused.chunk(3, dim=-1))
    turned = random(samples, 10, 4, 7, seed=1).permute(0, 3, 2, 1)
    rest = (random(40, seed=1), random(40, seed=2), *angles(7, 10), EPS)
    for pair in ((q, k), (turned, k)):
        expected = qk_norm_rope_8bit(*(x.contiguous() for x in pair), *rest, impl="triton")
        assert all(map(torch.equal, qk_norm_rope_8bit(*pair, *rest, impl="triton"), expected))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("per_head", [True, False])
def test_a_token_that_is_not_finite_makes_the_scale_so(per_head: bool, impl: str) -> None:
    q = random(1, 200, 2, 8)
    q[0, 150, 0, 3] = float("nan")
    k = random(1, 200, 2, 8)
    k[0, 3, 0, 5] = float("inf")
    weight = random(8 if per_head else 16)
    _, q_scale, _, k_scale = qk_norm_rope_8bit(
        q, k, weight, weight, *angles(200, 8), EPS, per_head=per_head, block=64, impl=impl
    )
    for scale, block in ((q_scale, 2), (k_scale, 0)):
        assert not scale[0, 0, block].isfinite()
        elsewhere = [other for other in range(4) if other != block]
        assert scale[0, :, elsewhere].isfinite().all()
        assert scale[0, 1, block].isfinite() or not per_head


def test_what_does_not_fit_is_refused() -> None:
    q, weight = random(1, 5, 2, 8), random(16)
    args = (q, q, weight, weight, *angles(5, 8), EPS)
    with pytest.raises(ValueError, match="block 64 or 128, not 32"):
        qk_norm_rope_8bit(*args, block=32)
    with pytest.raises(ValueError, match=r"not torch\.uint8"):
        qk_norm_rope_8bit(*args, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"here \[1, 2, 8\]; found \[2, 8\]"):
        qk_norm_rope_8bit(*args, k_mean=random(2, 8))
    with pytest.raises(ValueError, match="float32"):
        qk_norm_rope_8bit(*args, order=random(5))
    with pytest.raises(ValueError, match=r"qk_norm_rope_8bit takes .* cos \[4, 4\]"):
        qk_norm_rope_8bit(q, q, weight, weight, *angles(4, 8), EPS)
    ampere = Case("cuda", None, arch=86, sizes=(1,))
    with pytest.raises(UnsupportedError, match="sm_89 or newer, the device is sm_86"):
        select("qk_norm_rope_8bit", ampere, "triton")
    assert select("qk_norm_rope_8bit", ampere).impl == "reference"
    assert select("qk_norm_rope_8bit", ampere._replace(sizes=(0,))).impl == "triton"

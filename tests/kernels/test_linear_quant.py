"""linear_quant: exact where it is integers, within the budget elsewhere, on chips with and without fp8."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt_kernels import (
    QuantizedWeight,
    UnsupportedError,
    dispatch,
    linear_quant,
    linear_w8,
    linear_w8a8,
    quantize_rows,
    quantize_weight,
)
from glimt_kernels.linear_quant import int_mm, quantize, reference, scaled_mm, tiles, triton
from glimt_kernels.triton_env import jit, tl

# sm_80 decodes e4m3 with integer arithmetic and takes other tiles than sm_90, which has two sums.
ARCHS = (80, 90, 120)
KINDS = ("int8", "fp8")
# (M, N, K): ones; primes; beside the steps and tiles; more than one tile each way.
SHAPES = [(1, 1, 1), (7, 13, 31), (3, 48, 144), (131, 127, 257), (262, 272, 160)]


@jit
def _decode(bytes_at, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, triton._decode_e4m3(tl.load(bytes_at + at), out.dtype.element_ty))


@jit
def _encode(x, bytes_at, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(bytes_at + at, triton._encode_e4m3(tl.load(x + at)))


def every_e4m3() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_all_bytes_of_e4m3_are_decoded_exactly(dtype: torch.dtype) -> None:
    """bfloat16, which the interpreter cannot run, is the upper half of what float32 is made from."""
    found = torch.empty(256, dtype=dtype)
    _decode[(1,)](every_e4m3().view(torch.int8), found, COUNT=256)
    expected = every_e4m3().to(dtype)
    assert expected.isnan().sum() == 2
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert torch.equal(found.signbit()[~found.isnan()], expected.signbit()[~found.isnan()])


def test_rounding_to_e4m3_is_to_nearest_even() -> None:
    finite = every_e4m3().float()
    finite = finite[finite.isfinite()].sort().values
    middle = (finite[1:] + finite[:-1]) / 2
    beside = [torch.nextafter(middle, torch.full_like(middle, to)) for to in (-1e9, 1e9)]
    x = torch.cat([finite, middle, *beside, random(2048), random(2048, seed=1) * 0.01])
    x = F.pad(x, (0, 8192 - x.numel()))
    found = torch.empty(8192, dtype=torch.int8)
    _encode[(1,)](x, found, COUNT=8192)
    assert torch.equal(found, x.to(torch.float8_e4m3fn).view(torch.int8))


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_quantized_to_the_same_bits(kind: str, groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for k, dtype in itertools.product((1, 131, 301), HALVES):
        for name, x in adversarial(1, 2, k, dtype=dtype).items():
            data, scales = quantize_rows(x, kind, groups, impl="triton")
            expected, expected_scales = quantize_rows(x, kind, groups, impl="reference")
            assert data.is_contiguous()
            assert torch.equal(data.view(torch.int8), expected.view(torch.int8)), f"{name}, {k}, {dtype}"
            assert torch.equal(scales, expected_scales), f"{name}, {k}, {dtype}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_rows_of_any_number_of_samples_and_strides(samples: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for x in (random(samples, 14, 140)[:, ::2], random(samples, 140, 7).transpose(1, 2), random(samples, 1, 300)):
        for groups in (False, True):
            found, expected = (quantize_rows(x, kind, groups, impl=impl) for impl in ("triton", "reference"))
            assert torch.equal(found[0].view(torch.int8), expected[0].view(torch.int8))
            assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("granularity", ["channel", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_within_half_a_step(kind: str, granularity: str) -> None:
    for n, k in ((1, 1), (131, 257)):
        for name, x in adversarial(n, k).items():
            if name in ("denormals", "zeros"):
                continue
            weight = quantize_weight(x, kind, granularity)
            rows = quantize.dequantize_rows(*quantize_rows(x, kind, granularity == "block", impl="reference"))
            for found, scales in ((weight.dequantize(), weight.scales), (rows, None)):
                largest = x.abs().amax().item() if scales is None else scales.max().item() * quantize.KINDS[kind][1]
                step = 1 / 127 if kind == "int8" else 1 / 14  # the largest e4m3 numbers are 32 apart
                assert (found - x).abs().max() <= largest * step * 0.501, name
            top = quantize.KINDS[kind][1]
            assert weight.data.float().abs().max() == top
    assert weight.shape == (131, 257)
    assert weight.nbytes == 131 * 257 + weight.scales.nbytes


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden(kind: str, impl: str) -> None:
    x = random(1, 6, 40)
    x[0, 1], x[0, 2, 3], x[0, 3, 5], x[0, 4] = 0.0, float("nan"), float("inf"), 1e-42
    found = linear_quant(x, quantize_weight(random(24, 40), kind), random(24), impl=impl)
    assert found[0, [0, 1, 4, 5]].isfinite().all()
    assert torch.equal(found[0, 1], random(24))
    assert not found[0, 2].isfinite().any()
    assert not found[0, 3].isfinite().any()


def integers(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(m + n + k)
    x, weight = (torch.randint(-127, 128, (rows, k), generator=make, dtype=torch.int8) for rows in (m, n))
    x[0], weight[0] = 127, -127
    return x, weight


@pytest.mark.parametrize("impl", ["triton", "int_mm", "reference"])
def test_sums_of_int8_are_exact(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for m, n, k in SHAPES:
        x, weight = integers(m, n, k)
        expected = x.double() @ weight.double().T
        poison(monkeypatch)
        found = linear_w8a8(x, torch.ones(m), weight, torch.ones(n), impl=impl)
        monkeypatch.undo()
        assert torch.equal(found.double(), expected), (m, n, k)


@pytest.mark.parametrize("arch", ARCHS)
def test_sums_of_integers_are_exact_on_every_chip(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for (m, n, k), kind in itertools.product(SHAPES, KINDS):
        x, weight = integers(m, n, k)
        ones: tuple[Tensor, Tensor] = torch.ones(m), torch.ones(n)
        if kind == "fp8":
            x, weight = ((t.clamp(-16, 16)).to(torch.float8_e4m3fn) for t in (x, weight))
        found = triton.linear_w8a8(x, ones[0], weight, ones[1], arch=arch)
        assert torch.equal(found.double(), x.double() @ weight.double().T), (m, n, k, kind)


def honest(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str, gate: Tensor | None, residual: Tensor | None
) -> Tensor:
    value = F.linear(x, weight, bias)
    if activation == "gelu_tanh":
        value = F.gelu(value, approximate="tanh")
    if residual is None:
        return value
    return residual + (value if gate is None else gate * value)


EPILOGUES: dict[str, tuple[str, tuple[int, int] | None, bool]] = {
    "bias": ("none", None, False),
    "gelu": ("gelu_tanh", None, False),
    "residual": ("none", None, True),
    "gate of a sample": ("none", (2, 1), True),
    "gate of all": ("gelu_tanh", (1, 1), True),
    "gate of a token": ("none", (2, -1), True),
}


def check(
    kind: str, blocks: bool, dtype: torch.dtype, shape: tuple[int, int, int], epilogue: str, arch: int, x8: bool
) -> None:
    """A call of the kernel for ``arch`` is within the budget."""
    tokens, n, k = shape
    activation, gated, added = EPILOGUES[epilogue]
    weight = quantize_weight(random(n, k, seed=1) / k**0.5, kind, "block" if blocks else "channel")
    bias = random(n, seed=2).to(dtype)
    gate = None if gated is None else random(gated[0], tokens if gated[1] < 0 else 1, n, seed=3).to(dtype)
    residual = random(2, tokens, n, seed=4).to(dtype) if added else None
    x = random(2, tokens, k).to(dtype)
    x[..., 0] *= 50  # an outlier channel
    rest: Any = (weight.data, weight.scales, bias, gate, residual, activation, dtype)
    if x8:
        data, scales = quantize.quantize_rows(x, kind, blocks)
        found = triton.linear_w8a8(data, scales, *rest, arch=arch)
        exact_x = quantize.dequantize_rows(data, scales.double())
    else:
        found = triton.linear_w8(x, *rest, arch=arch)
        exact_x = x.double()
    exact_weight = quantize.dequantize_weight(weight.data, weight.scales.double())
    wide = [None if t is None else t.double() for t in (gate, residual)]
    exact = honest(exact_x, exact_weight, bias.double(), activation, *wide)
    plain = honest(exact_x.to(dtype), exact_weight.to(dtype), bias, activation, gate, residual)
    assert found.is_contiguous()
    check_budget(found, plain, exact, f"{kind}, blocks {blocks}, {shape}, {epilogue}, sm_{arch}, x8 {x8}")


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("x8", [True, False], ids=["w8a8", "w8"])
def test_epilogues_within_budget(x8: bool, dtype: torch.dtype, epilogue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for kind in KINDS:
        check(kind, False, dtype, (37, 80, 64), epilogue, 90, x8)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("blocks", [False, True], ids=["channel", "block"])
@pytest.mark.parametrize("x8", [True, False], ids=["w8a8", "w8"])
def test_chips_and_shapes_within_budget(x8: bool, blocks: bool, arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for kind, shape in itertools.product(KINDS, ((1, 1, 1), (131, 127, 257), (131, 144, 160))):
        check(kind, blocks, torch.float16, shape, "gate of a token", arch, x8)
    check("fp8", blocks, torch.float32, (5, 144, 400), "gelu", arch, x8)


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_of_e4m3_bytes_are_taken_exactly_even_nan(arch: int) -> None:
    """All bytes, in the dtype of x, one a column of the output; NaN spoils its own alone."""
    weight = torch.zeros(256, 16, dtype=torch.float8_e4m3fn)
    weight[:, 3] = every_e4m3()
    if arch >= 89:  # the interpreter converts NaN to 480
        weight[[0x7F, 0xFF]] = 0.0
    x = torch.zeros(1, 1, 16, dtype=torch.float16)
    x[..., 3] = 1.0
    found = triton.linear_w8(x, weight, torch.ones(256), arch=arch)[0, 0]
    expected = weight[:, 3].half()
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_any_number_of_samples_and_strides(samples: int, kind: str) -> None:
    x, table = random(samples, 40, 7).transpose(1, 2), random(max(samples, 1), 7, 6, 24, seed=1)
    residual = random(samples, 24, 7, seed=2).transpose(1, 2)
    weight = quantize_weight(random(40, 24).T, kind)
    for gate, x8 in itertools.product((table[:, :1, 2], table[:, :, 2], None), (True, False)):
        found, expected = (
            linear_quant(x, weight, random(24), gate=gate, residual=residual, quantize_x=x8, impl=impl)
            for impl in ("triton", "reference")
        )
        assert found.shape == (samples, 7, 24)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_any_leading_axes() -> None:
    weight = quantize_weight(random(24, 40), "int8")
    for shape in ((), (5,), (2, 3, 4)):
        x = random(*shape, 40)
        for impl in ("triton", "int_mm", "reference"):
            found = linear_quant(x, weight, random(24), impl=impl)
            assert found.shape == (*shape, 24)
            torch.testing.assert_close(found, F.linear(x, weight.dequantize(), random(24)), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("x8", [True, False], ids=["w8a8", "w8"])
def test_activations_as_they_are_in_trained_networks(x8: bool) -> None:
    for kind, blocks in itertools.product(KINDS, ("channel", "block")):
        weight = quantize_weight(random(48, 144, seed=3), kind, blocks)
        for name, x in adversarial(1, 3, 144).items():
            found, expected = (linear_quant(x, weight, quantize_x=x8, impl=impl) for impl in ("triton", "reference"))
            assert found.isfinite().all(), name
            largest = expected.abs().max().item()
            assert (found - expected).abs().max().item() <= 1e-5 * largest + 1e-38, f"{name}, {kind}, {blocks}"


def test_int_mm_is_chosen_on_the_cpu_for_int8_alone() -> None:
    def chosen(weight: QuantizedWeight) -> str:
        x, scales = quantize_rows(random(5, 32), weight.kind, weight.granularity == "block")
        return dispatch.select(
            "linear_w8a8", dispatch._OPS["linear_w8a8"].case((x, scales, weight.data, weight.scales))
        ).impl

    assert chosen(quantize_weight(random(8, 32), "int8")) == ("int_mm" if int_mm._is_exact() else "reference")
    assert chosen(quantize_weight(random(8, 32), "int8", "block")) == "reference"
    assert chosen(quantize_weight(random(8, 32), "fp8")) == "reference"
    with pytest.raises(UnsupportedError, match=r"it takes int8; it takes scales per row"):
        linear_quant(random(5, 32), quantize_weight(random(8, 32), "fp8", "block"), impl="int_mm")
    case = dispatch.Case("cuda", None, sizes=(1, 0, 0, 16, 8, 30, 1), arch=90)
    assert int_mm.reasons(case) == [
        "cuBLAS takes more than 16 rows, N and K in multiples of 8; found 16 rows, N 8, K 30"
    ]


def test_scaled_mm_is_the_same_product() -> None:
    """PyTorch's, by name: each scale on its own axis, the weight turned, the bias added before the only rounding."""
    for shape, n, k in (((33,), 32, 48), ((2, 5), 16, 144), ((1,), 48, 16)):
        weight = quantize_weight(random(n, k), "fp8")
        x, scales = quantize_rows(random(*shape, k), "fp8")
        for bias in (None, random(n).bfloat16()):
            args = (x, scales, weight.data, weight.scales, bias, None, None, "none", torch.bfloat16)
            found, expected = (linear_w8a8(*args, impl=impl) for impl in ("scaled_mm", "reference"))
            assert found.shape == (*shape, n) and found.dtype == torch.bfloat16 and found.is_contiguous()
            torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7 * expected.abs().max().item())


def test_scaled_mm_says_what_it_cannot() -> None:
    def reasons(arch: int, *sizes: int) -> str:
        return "; ".join(scaled_mm.reasons(dispatch.Case("cuda", None, sizes=sizes, arch=arch)))

    assert reasons(89, 0, 0, 2, 99, 32, 16, 1) == reasons(120, 0, 0, 2, 1, 16, 48, 1) == ""
    wrong = reasons(86, 1, 1, 1, 0, 30, 16, 0)
    for part in ("fp8", "per block", "bfloat16", "round twice", "sm_89 or newer", "found 0 rows, N 30, K 16"):
        assert part in wrong
    x, weight = random(3, 32), quantize_weight(random(16, 32), "fp8")
    with pytest.raises(UnsupportedError, match="it gives bfloat16"):
        linear_quant(x, weight, impl="scaled_mm")
    assert linear_quant(x.bfloat16(), weight, impl="scaled_mm").dtype == torch.bfloat16
    with pytest.raises(UnsupportedError, match="round twice"):
        linear_quant(x.bfloat16(), weight, activation="gelu_tanh", impl="scaled_mm")
    with pytest.raises(UnsupportedError, match="round twice"):  # a bias of another dtype
        linear_quant(x.bfloat16(), weight, random(16), impl="scaled_mm")


def test_every_chip_has_an_fp8_linear() -> None:
    """Where there is no fp8 arithmetic the launch asks for none."""
    for arch in (75, 80, 86, 87):
        for x_dtype in (None, torch.bfloat16):
            constants, _ = tiles.launch(arch, "fp8", x_dtype, (1536, 1536), False, tiles.Epilogue())
            assert constants["DECODE"]
            assert constants["DOT"] == "half"
    old = dispatch.Case("cuda", None, arch=80, sizes=(0, 0, 2, 99, 16, 16, 1))
    assert {dispatch.select(op, old).impl for op in ("linear_w8", "linear_w8a8")} == {"triton"}


def test_gradients_pass_where_x_is_not_rounded() -> None:
    weight = quantize_weight(random(5, 7).double(), "int8")
    args = [random(2, 3, 7), random(5), random(2, 1, 5), random(2, 3, 5)]
    wide = [t.double().requires_grad_() for t in args]

    def call(x: Tensor, bias: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
        return linear_quant(x, weight, bias, gate=gate, residual=residual, quantize_x=False)

    assert torch.autograd.gradcheck(call, wide)
    with pytest.raises(ValueError, match="no gradient"):
        linear_quant(wide[0], weight)
    assert linear_quant(wide[0].detach(), weight, wide[1]).requires_grad


def test_float64_is_computed_in_float64() -> None:
    x, weight = random(3, 40).double(), quantize_weight(random(24, 40).double(), "int8")
    assert linear_quant(x, weight).dtype == torch.float64
    with pytest.raises(UnsupportedError, match="float64"):
        linear_quant(x, weight, impl="triton")


def test_dtypes_of_outputs() -> None:
    x, weight = random(1, 3, 40).half(), quantize_weight(random(24, 40), "int8")
    residual = random(1, 3, 24)
    for impl in ("triton", "reference"):
        assert linear_quant(x, weight, impl=impl).dtype == torch.float16
        assert linear_quant(x, weight, residual=residual, impl=impl).dtype == torch.float32
        assert linear_quant(x, weight, out_dtype=torch.float32, quantize_x=False, impl=impl).dtype == torch.float32
    assert linear_w8a8(*quantize_rows(x, "int8"), weight.data, weight.scales).dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    x, weight = random(2, 5, 40), quantize_weight(random(24, 40), "int8")
    with pytest.raises(ValueError, match="did you mean 'fp8'"):
        quantize_rows(x, "fp")
    with pytest.raises(ValueError, match="did you mean 'block'"):
        quantize_weight(x[0], "int8", "blocks")
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(torch.full((2, 2), float("nan")), "int8")
    with pytest.raises(ValueError, match=r"found torch.float32 \[2, 5, 40\]"):
        quantize_weight(x, "int8")
    with pytest.raises(ValueError, match="quantize_rows takes"):
        quantize_rows(x.int(), "int8")
    with pytest.raises(ValueError, match="together with the residual"):
        linear_quant(x, weight, gate=random(2, 1, 24))
    with pytest.raises(ValueError, match="did you mean 'gelu_tanh'"):
        linear_quant(x, weight, activation="gelu")
    with pytest.raises(ValueError, match=r"bias torch.float32 \[23\]"):
        linear_quant(x, weight, random(23))
    with pytest.raises(ValueError, match=r"gate torch.float32 \[2, 3, 24\]"):
        linear_quant(x, weight, gate=random(2, 3, 24), residual=random(2, 5, 24))
    with pytest.raises(ValueError, match=r"weight torch.int8 \[24, 40\]"):
        linear_w8(random(2, 5, 41), weight.data, weight.scales)
    with pytest.raises(ValueError, match=r"data of kind fp8 .* scales per block must be \[1, 1\], found \[24\]"):
        QuantizedWeight(weight.data, weight.scales, "fp8", "block")


def test_inputs_are_left_alone() -> None:
    x, weight, residual = random(2, 5, 40), quantize_weight(random(24, 40), "fp8"), random(2, 5, 24)
    copies = [t.clone() for t in (x, weight.data.view(torch.int8), residual)]
    for x8 in (True, False):
        linear_quant(x, weight, residual=residual, quantize_x=x8, impl="triton")
    assert all(map(torch.equal, (x, weight.data.view(torch.int8), residual), copies))
    assert reference.default_dtype(x, None) == torch.float32

"""linear: every epilogue within the budget on every launch shape, and who runs what, where, and why."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt_kernels import Case, UnsupportedError, dispatch, linear, references_only, select
from glimt_kernels.linear import onednn, triton
from glimt_kernels.linear.call import Call
from glimt_kernels.resources import SHARED_LIMIT
from glimt_kernels.triton_env import ARCHS

# Those with tiles of their own.
CHIPS = (80, 90, 100)
# (tokens, M, K): ones; primes; beside the steps and tiles; more than one tile each way.
SHAPES = [(1, 1, 1), (7, 13, 31), (3, 48, 144), (131, 136, 80)]
# Activation, gate [B, G] (G: 0 for one of each token), whether there is a residual.
EPILOGUES: dict[str, tuple[str | None, tuple[int, int] | None, bool]] = {
    "bias": (None, None, False),
    "gelu tanh": ("gelu_tanh", None, False),
    "gelu erf": ("gelu_erf", None, False),
    "residual": (None, None, True),
    "gate of a sample": (None, (2, 1), True),
    "gate of all": ("gelu_tanh", (1, 1), True),
    "gate of a token": (None, (2, 0), True),
    "gelu erf, residual": ("gelu_erf", None, True),
    "gelu erf, gate of a sample": ("gelu_erf", (2, 1), True),
    "gelu erf, gate of a token": ("gelu_erf", (2, 0), True),
}
CPU = Case("cpu", torch.float32)
# Of the kinds of calls, what runs them on a GPU in half precision.
PLAIN, GELU, GATED = Call(dtype=2), Call(dtype=2, activation=1), Call(dtype=2, gate=1, residual=1)


def honest(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    value = F.linear(x, weight, bias)
    if activation is not None:
        value = F.gelu(value, approximate="tanh" if activation == "gelu_tanh" else "none")
    if gate is not None:
        groups = value.view(value.shape[0], gate.shape[1], -1, value.shape[2])
        value = (gate[:, :, None] * groups).view(value.shape)
    return value if residual is None else residual + value


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def arguments(
    shape: tuple[int, int, int], epilogue: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, str | None, Tensor | None, Tensor | None]:
    tokens, m, k = shape
    activation, gated, added = EPILOGUES[epilogue]
    x = random(2, tokens, k).to(dtype)
    x[..., 0] *= 50  # an outlier channel
    gate = None if gated is None else random(gated[0], gated[1] or tokens, m, seed=3).to(dtype)
    residual = random(2, tokens, m, seed=4).to(dtype) if added else None
    weight = (random(m, k, seed=1) / k**0.5).to(dtype)
    return x, weight, random(m, seed=2).to(dtype), activation, gate, residual


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_within_budget(dtype: torch.dtype, epilogue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    for shape, arch in itertools.product(SHAPES, CHIPS):
        x, weight, bias, activation, gate, residual = arguments(shape, epilogue, dtype)
        found = triton.linear(x, weight, bias, gate, residual, activation or "none", arch=arch)
        exact = honest(x.double(), weight.double(), bias.double(), activation, *wide(gate, residual))
        plain = honest(x, weight, bias, activation, gate, residual)
        assert found.is_contiguous()
        check_budget(found, plain, exact, f"{shape}, {epilogue}, sm_{arch}")


@pytest.mark.parametrize("impl", ["onednn", "aten", "reference"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_on_a_cpu_within_budget(epilogue: str, impl: str) -> None:
    for shape in SHAPES:
        x, weight, bias, activation, gate, residual = arguments(shape, epilogue, torch.float32)
        found = linear(x, weight, bias, activation=activation, gate=gate, residual=residual, impl=impl)
        exact = honest(x.double(), weight.double(), bias.double(), activation, *wide(gate, residual))
        check_budget(found, honest(x, weight, bias, activation, gate, residual), exact, f"{shape}, {epilogue}")


def test_triton_within_budget_on_activations_as_they_are_and_should_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    weight = random(40, 67, seed=1)
    for dtype in HALVES:
        for name, x in adversarial(1, 5, 67, dtype=dtype).items():
            low = weight.to(dtype)
            exact = F.linear(x.double(), low.double())
            if exact.abs().max() < torch.finfo(dtype).max:
                check_budget(linear(x, low, impl="triton"), F.linear(x, low), exact, name)


@pytest.mark.parametrize("impl", ["triton", "onednn", "aten", "reference"])
def test_groups_of_tokens_have_gates_of_their_own(impl: str) -> None:
    x, weight, residual = random(2, 12, 20), random(16, 20, seed=1), random(2, 12, 16, seed=2)
    for samples, groups in itertools.product((1, 2), (1, 3, 12)):
        gate = random(samples, groups, 16, seed=3)
        found = linear(x, weight, gate=gate, residual=residual, impl=impl)
        torch.testing.assert_close(found, honest(x, weight, None, None, gate, residual), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "aten", "reference"])
def test_a_gate_and_a_residual_may_be_wider_than_the_product(impl: str) -> None:
    """As in a half-precision Wan: modulations and some streams are float32."""
    x, weight = random(1, 5, 24).half(), random(16, 24, seed=1).half()
    gate, residual = random(1, 1, 16, seed=2), random(1, 5, 16, seed=3)
    half = linear(x, weight, gate=gate, residual=residual.half(), impl=impl)
    single = linear(x, weight, gate=gate, residual=residual, impl=impl)
    assert (half.dtype, single.dtype) == (torch.float16, torch.float32)
    exact = residual + gate * F.linear(x.float(), weight.float())
    torch.testing.assert_close(single, exact, rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(half.float(), exact, rtol=4e-3, atol=8e-3)


@pytest.mark.parametrize("impl", ["triton", "onednn", "aten", "reference"])
def test_any_number_of_rows_and_strides(impl: str) -> None:
    weights = random(40, 24, seed=1).t(), random(24, 64, seed=1)[:, 3:43]
    for samples, weight in itertools.product((0, 1, 3), weights):
        x, residual = random(samples, 40, 7).transpose(1, 2), random(samples, 7, 48, seed=2)[..., ::2]
        gate = random(1, 2, 24, seed=3)[:, 1:]
        if impl == "onednn" and not samples:
            with pytest.raises(UnsupportedError, match="no empty tensors"):
                linear(x, weight, gate=gate, residual=residual, impl=impl)
            continue
        found = linear(x, weight, gate=gate, residual=residual, impl=impl)
        expected = residual + gate * (x.reshape(-1, 40) @ weight.t()).view(samples, 7, 24)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.is_contiguous()
    vector = linear(random(40), random(24, 40), impl=None if impl == "onednn" else impl)
    assert vector.shape == (24,)


@pytest.mark.parametrize("impl", ["triton", "onednn", "aten"])
def test_what_is_not_finite_is_not_hidden_and_inputs_are_left_alone(impl: str) -> None:
    x, weight, gate, residual = random(1, 5, 24), random(16, 24, seed=1), random(1, 1, 16), random(1, 5, 16, seed=2)
    x[0, 1, 3], residual[0, 2, 7] = float("nan"), float("inf")
    copies = [t.clone() for t in (x, weight, gate, residual)]
    for activation in (None, "gelu_tanh"):
        found = linear(x, weight, activation=activation, gate=gate, residual=residual, impl=impl)
        assert found.isnan()[0, 1].all() and found[0, 2, 7] == float("inf")
        assert found[0, [0, 3, 4]].isfinite().all()
    for now, before in zip((x, weight, gate, residual), copies, strict=True):
        assert torch.equal(now.nan_to_num(), before.nan_to_num())


def test_tiles_fit_shared_memory() -> None:
    for build in triton.BUILDS:
        constants = build.constants
        item = {"*fp32": 4}.get(build.signature["x"], 2)
        step = (constants["M_TILE"] + constants["N_TILE"]) * constants["K_STEP"] * item
        assert all(step * build.num_stages <= SHARED_LIMIT[arch] for arch in build.archs), build.case
        assert build.num_stages > 1


@pytest.mark.parametrize("arch", ARCHS)
def test_a_gpu_takes_the_library_where_that_is_one_launch_and_triton_elsewhere(
    arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(call: Call) -> str:
        return select("linear", Case("cuda", None, arch=arch, sizes=call)).impl

    assert [chosen(call) for call in (PLAIN, GELU, GATED)] == ["aten", "aten", "triton"]
    assert chosen(GELU._replace(bias=0)) == chosen(Call(dtype=1, activation=2)) == "triton"
    assert chosen(GATED._replace(dtype=0)) == "aten"
    dispatch._CHOSEN.clear()
    monkeypatch.setattr("glimt_kernels.triton_env.ABSENT", "not there")
    assert chosen(GATED) == "aten"
    dispatch._CHOSEN.clear()


@pytest.mark.parametrize(
    ("case", "reasons"),
    [
        (CPU, []),
        (Case("cuda", torch.float32), ["it is called on the CPU, the tensors are on cuda"]),
        (Case("cpu", torch.bfloat16), ["it is called for float32, the tensors are bfloat16"]),
    ],
)
def test_onednn_says_why_it_is_not_called(case: Case, reasons: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert onednn.reasons(case) == reasons
    rows = {row["impl"]: row for row in onednn.inventory(case)}
    assert rows["onednn"] == {
        "op": "convolution",
        "form": "",
        "impl": "onednn",
        "chosen": not reasons,
        "reasons": reasons,
    }
    assert rows["aten"] == {"op": "convolution", "form": "", "impl": "aten", "chosen": bool(reasons), "reasons": []}
    assert onednn.library(case)[0] == ("aten" if reasons else "onednn")
    monkeypatch.setattr(onednn, "has_onednn", lambda: False)
    with references_only():
        found = next(row for row in onednn.inventory(case) if row["impl"] == "onednn")
    assert not found["chosen"] and len(found["reasons"]) == len(reasons) + 2
    assert any("exact runs" in reason for reason in found["reasons"])
    assert any("no oneDNN" in reason for reason in onednn.reasons(case))


def test_what_does_not_fit_is_refused() -> None:
    x, weight, residual = random(2, 6, 40), random(24, 40), random(2, 6, 24)
    for wrong, message in (
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"gate": random(2, 1, 24)}, "together with the residual"),
        ({"gate": random(2, 4, 24), "residual": residual}, r"gate \[2, 4, 24\]"),
        ({"gate": random(3, 1, 24), "residual": residual}, r"gate \[3, 1, 24\]"),
        ({"residual": residual[:1]}, r"residual \[1, 6, 24\]"),
        ({"bias": random(23)}, r"bias \[23\]"),
        ({"bias": random(24).half()}, r"bias \[24\] torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(x, weight, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight \[24, 40\] torch.float32"):
        linear(x.half(), weight)
    with pytest.raises(ValueError, match="one floating dtype"):
        linear(x.int(), weight.int())
    with pytest.raises(UnsupportedError, match="float64"):
        linear(x.double(), weight.double(), impl="triton")

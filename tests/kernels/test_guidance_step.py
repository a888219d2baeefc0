"""guidance_step: within the budget, and every step of Euler, UniPC and DMD as rows of coefficients."""

from __future__ import annotations

import pytest
import torch
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt.sampling.guidance import guide
from glimt.sampling.schedule import build
from glimt.sampling.solvers import UniPC
from glimt_kernels import Case, UnsupportedError, guidance_step, select

IMPLS = ("triton", "reference")
# B, C, f, h, w: one element; a prime; more than a program's run and no multiple of it; a multiple of 16.
SHAPES = [(1, 1, 1, 1, 1), (1, 1, 1, 1, 31), (3, 4, 3, 7, 11), (1, 16, 2, 6, 8)]


def honest(terms: list[Tensor], row: list[float]) -> Tensor:
    total = row[0] * terms[0]
    for coefficient, term in zip(row[1:], terms[1:], strict=True):
        total = total + coefficient * term
    return total


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("numbers", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("history", "outputs"), [(0, 1), (0, 2), (1, 2), (3, 3), (4, 4)])
def test_within_budget(
    history: int, outputs: int, dtype: torch.dtype, numbers: torch.dtype, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    for shape in SHAPES:
        x, cond, uncond = random(*shape), random(*shape, seed=1).to(dtype), random(*shape, seed=2).to(dtype)
        past = [random(*shape, seed=3 + i) for i in range(history)]
        coefficients = random(outputs, 2 + history, seed=9).to(numbers)
        for scale in (None, 5.0):
            other = None if scale is None else uncond
            guidance = None if scale is None else torch.tensor([scale], dtype=numbers)
            found = guidance_step(x, cond, other, guidance, coefficients, past, impl=impl)
            assert len(found) == outputs
            v = cond.float() if scale is None else guide(cond, uncond, scale)
            wide = cond.double() if scale is None else uncond.double() + scale * (cond.double() - uncond.double())
            for y, row in zip(found, coefficients.tolist(), strict=True):
                exact = honest([x.double(), wide, *(p.double() for p in past)], row)
                check_budget(y, honest([x, v, *past], row), exact, f"{shape}, {scale}")
                assert y.is_contiguous()


@pytest.mark.parametrize("impl", IMPLS)
def test_adversarial_latents(impl: str) -> None:
    row = [0.75, -1.5, 0.25]
    for name, x in adversarial(2, 3, 37).items():
        cond, uncond, past = x.roll(1, 0), x.roll(1, 1).flip(2), x.flip(1)
        found = guidance_step(x, cond, uncond, 7.5, torch.tensor([row]), [past], impl=impl)[0]
        wide = uncond.double() + 7.5 * (cond.double() - uncond.double())
        exact = honest([x.double(), wide, past.double()], row)
        check_budget(found, honest([x, guide(cond, uncond, 7.5), past], row), exact, name)


def unipc_rows(solver: UniPC, i: int) -> list[list[float]]:
    """Next latents, x0 and corrected latents, from latents, velocity, last corrected latents and the last two x0."""
    unit = torch.eye(5, dtype=torch.float64)
    x, v, last, m0, m1 = unit
    x0 = x - solver.schedule.sigmas[i] * v
    corrector = solver._correctors[i]
    corrected = x if corrector is None else corrector.apply(last, m0, m1, x0)
    return torch.stack([solver._predictors[i].apply(corrected, x0, m0), x0, corrected]).tolist()


@pytest.mark.parametrize("impl", IMPLS)
def test_walks_unipc(impl: str) -> None:
    """Eight steps of UniPC with guidance, beside the engine's solver and the same in float64."""
    schedule = build("unipc", 8, shift=5.0)
    solver, exact_solver = UniPC(schedule, 0), UniPC(schedule, 0)
    x = solver.start(random(1, 4, 3, 5, 7))
    theirs, exact_x = x, x.double()
    history = [torch.zeros_like(x) for _ in range(3)]
    for i in range(schedule.num_inference_steps):
        cond, uncond = random(*x.shape, seed=10 + i), random(*x.shape, seed=30 + i)
        rows = torch.tensor(unipc_rows(solver, i), dtype=torch.float64)
        x, x0, corrected = guidance_step(x, cond, uncond, 5.0, rows, history, impl=impl)
        wide = uncond.double() + 5.0 * (cond.double() - uncond.double())
        exact_x0 = exact_x - schedule.sigmas[i] * wide
        step = exact_solver._correctors[i]
        if step is not None:
            assert exact_solver._x is not None
            assert exact_solver._m0 is not None
            exact_x = step.apply(exact_solver._x, exact_solver._m0, exact_solver._m1, exact_x0)
        exact_solver._x, exact_solver._m0, exact_solver._m1 = exact_x, exact_x0, exact_solver._m0
        exact_x = exact_solver._predictors[i].apply(exact_x, exact_x0, exact_solver._m1)
        theirs, their_x0 = solver.step(guide(cond, uncond, 5.0), i, theirs)
        check_budget(x0, their_x0, exact_x0, f"x0 of step {i}")
        check_budget(x, theirs, exact_x, f"step {i}")
        history = [corrected, x0, history[1]]


@pytest.mark.parametrize("impl", IMPLS)
def test_euler_and_dmd(impl: str) -> None:
    x, v, noise = random(2, 3, 5), random(2, 3, 5, seed=1).half(), random(2, 3, 5, seed=2)
    sigma, after = 0.75, 0.5
    rows = torch.tensor([[1, after - sigma], [1, -sigma]])
    new, x0 = guidance_step(x, v, None, None, rows, impl=impl)
    torch.testing.assert_close(new, x + (after - sigma) * v.float())
    torch.testing.assert_close(x0, x - sigma * v.float())
    rows = torch.tensor([[1 - after, -(1 - after) * sigma, after], [1, -sigma, 0]])
    new, x0 = guidance_step(x, v, None, None, rows, [noise], impl=impl)
    torch.testing.assert_close(new, (1 - after) * x0 + after * noise)


@pytest.mark.parametrize("impl", [*IMPLS, None])
def test_outputs_may_be_given_and_may_be_inputs(impl: str | None) -> None:
    x, cond, uncond, past = (random(3, 700, seed=i) for i in range(4))
    rows = random(2, 3, seed=9)
    expected = guidance_step(x, cond, uncond, 3.0, rows, [past], impl=impl)
    target = torch.full_like(x, float("nan"))
    found = guidance_step(x, cond, uncond, 3.0, rows, [past], out=(x, target), impl=impl)
    assert found[0] is x
    assert found[1] is target
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("impl", IMPLS)
def test_any_number_of_samples_and_strides(samples: int, impl: str) -> None:
    x, both = random(samples, 5, 4).transpose(1, 2), random(2 * samples, 4, 5, seed=1)
    cond, uncond = both.chunk(2)
    past = random(samples, 4, 10, seed=2)[..., ::2]
    rows = random(3, 4, seed=9)[:, 1:]
    found = guidance_step(x, cond, uncond, 3.0, rows, [past], impl=impl)
    dense = [t.contiguous() for t in (x, cond, uncond)]
    expected = guidance_step(*dense, 3.0, rows.contiguous(), [past.contiguous()], impl=impl)
    assert all(map(torch.equal, found, expected))
    assert all(tensor.is_contiguous() for tensor in found)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_finite_stays_so(impl: str) -> None:
    x, v = random(1, 40), random(1, 40, seed=1)
    x[0, 3], v[0, 35] = float("nan"), float("inf")
    found = guidance_step(x, v, v, 3.0, torch.tensor([[1.0, -0.5]]), impl=impl)[0]
    assert (~found.isfinite()).nonzero()[:, 1].tolist() == [3, 35]


def test_a_compiled_step_writes_to_given_outputs() -> None:
    x, cond, rows = random(2, 5), random(2, 5, seed=1), random(2, 2, seed=2)
    expected = guidance_step(x, cond, cond, torch.tensor(2.0), rows)
    outs = (torch.zeros(2, 5), torch.zeros(2, 5))

    def step(x: Tensor, cond: Tensor, rows: Tensor, first: Tensor, second: Tensor) -> None:
        guidance_step(x, cond, cond, torch.tensor(2.0), rows, out=(first, second))

    torch.compile(step, backend="eager", fullgraph=True)(x, cond, rows, *outs)
    assert all(map(torch.equal, outs, expected))


def test_float64_latents_take_the_reference() -> None:
    x, v, rows = random(2, 5).double(), random(2, 5, seed=1), random(1, 2).double()
    found = guidance_step(x, v, None, None, rows)[0]
    assert torch.equal(found, rows[0, 0] * x + rows[0, 1] * v.double())
    with pytest.raises(UnsupportedError, match="latents are of another dtype"):
        guidance_step(x, v, None, None, rows, impl="triton")
    with pytest.raises(
        UnsupportedError, match="up to 4 outputs from up to 4 tensors of history; asked for are 5 from 0"
    ):
        guidance_step(x.float(), v, None, None, random(5, 2), impl="triton")
    assert select("guidance_step", Case("cuda", None, arch=90, sizes=(1, 1, 3, 3))).impl == "triton"
    assert select("guidance_step", Case("cuda", None, arch=90, sizes=(1, 0, 3, 3))).impl == "reference"


def test_what_does_not_fit_is_refused() -> None:
    x, rows = random(2, 5), random(2, 2)
    with pytest.raises(ValueError, match="together, or neither"):
        guidance_step(x, x, x, None, rows)
    with pytest.raises(ValueError, match=r"cond is \[5\].*history 1 is \[2, 4\]") as caught:
        guidance_step(x, x[0], None, None, random(2, 4), [x, x[:, :4]])
    assert "coefficients" not in str(caught.value)
    with pytest.raises(ValueError, match=r"coefficients are \[2, 2\], not \[outputs, 2 \+ 1\]"):
        guidance_step(x, x, None, None, rows, [x])
    with pytest.raises(ValueError, match=r"history 0 is torch\.float16, latents are torch\.float32"):
        guidance_step(x, x, None, None, random(2, 3), [x.half()])
    with pytest.raises(ValueError, match=r"guidance is \[2\]"):
        guidance_step(x, x, x, torch.ones(2), rows)
    with pytest.raises(ValueError, match="1 tensors to write to, but 2 rows"):
        guidance_step(x, x, None, None, rows, out=[x])
    with pytest.raises(ValueError, match="out 1 is not contiguous"):
        guidance_step(x, x, None, None, rows, out=[x, random(5, 2).T])

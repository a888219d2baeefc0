"""qk_norm_rope: within the budget, equal to Diffusers' arithmetic, and a rotation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import UnsupportedError, qk_norm_rope

EPS = 1e-6
# heads, head_dim: one pair, a prime number of pairs, vectors and a rest, a real one.
SHAPES = [(1, 2), (3, 6), (3, 22), (2, 38), (5, 64), (12, 128)]


# per_head, pairs, whether each head has its own angles: as Wan, LTX, LTX-2, Hunyuan.
FORMS = [
    (False, "interleaved", False),
    (False, "interleaved", True),
    (False, "half", True),
    (True, "interleaved", False),
    (True, "half", False),
]


def angles(tokens: int, head_dim: int, *heads: int) -> tuple[Tensor, Tensor]:
    theta = random(tokens, *heads, head_dim // 2, seed=9) * 3
    return theta.cos(), theta.sin()


def honest(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, per_head: bool = False, pairs: str = "interleaved"
) -> Tensor:
    """As Diffusers' attention processors compute it, for one of q and k."""
    if per_head:
        x = F.rms_norm(x, weight.shape, weight, EPS)
    else:
        x = F.rms_norm(x.flatten(2), weight.shape, weight, EPS).unflatten(2, x.shape[2:])
    cos, sin = (table[None] if table.dim() == 3 else table[None, :, None] for table in (cos, sin))
    out = torch.zeros_like(x)
    half = x.shape[-1] // 2
    ones, others = (slice(0, half), slice(half, None)) if pairs == "half" else (slice(0, None, 2), slice(1, None, 2))
    out[..., ones] = x[..., ones] * cos - x[..., others] * sin
    out[..., others] = x[..., ones] * sin + x[..., others] * cos
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
def test_within_budget(isa: str, heads: int, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    cos, sin = angles(7, head_dim)
    weights = random(heads * head_dim, seed=2), random(heads * head_dim, seed=3)
    inputs = adversarial(2, 7, heads, head_dim)
    with instruction_set(isa):
        for name, q in inputs.items():
            k = inputs["plain"].roll(1, 1)
            found = qk_norm_rope(q, k, *weights, cos, sin, EPS, impl="native")
            for y, x, weight in zip(found, (q, k), weights, strict=True):
                exact = honest(x.double(), weight.double(), cos.double(), sin.double())
                check_budget(y, honest(x, weight, cos, sin), exact, name)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_triton_within_budget(
    form: tuple[bool, str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    per_head, pairs, table_heads = form
    for heads, head_dim in SHAPES[:-1]:
        tables = [table.to(dtype) for table in angles(3, head_dim, *([heads] if table_heads else []))]
        width = head_dim if per_head else heads * head_dim
        weights = random(width, seed=2).to(dtype), random(width, seed=3).to(dtype)
        inputs = adversarial(2, 3, heads, head_dim, dtype=dtype)
        for name, q in inputs.items():
            k = inputs["plain"].roll(1, 1)
            found = qk_norm_rope(q, k, *weights, *tables, EPS, per_head=per_head, pairs=pairs, impl="triton")
            for y, x, weight in zip(found, (q, k), weights, strict=True):
                exact = honest(*(t.double() for t in (x, weight, *tables)), per_head, pairs)
                check_budget(y, honest(x, weight, *tables, per_head, pairs), exact, f"{heads}x{head_dim}, {name}")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_reference_is_diffusers_arithmetic(form: tuple[bool, str, bool]) -> None:
    per_head, pairs, table_heads = form
    q, k, weight = random(2, 5, 3, 14), random(2, 5, 3, 14, seed=1), random(14 if per_head else 42, seed=2)
    tables = angles(5, 14, *([3] if table_heads else []))
    found = qk_norm_rope(q, k, weight, weight, *tables, EPS, per_head=per_head, pairs=pairs, impl="reference")
    for y, x in zip(found, (q, k), strict=True):
        torch.testing.assert_close(y, honest(x, weight, *tables, per_head, pairs))
        assert y.is_contiguous()


ORDERS = {
    "turned round": [*range(6, -1, -1)],
    "a few, one twice": [3, 0, 3],
    "empty places": [-1, 6, 2, 7, -3, 0, 1 << 30, 5, 5],
    "none": [],
}


@pytest.mark.parametrize("eps", [EPS, 0.0])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_order_places_tokens_and_leaves_zeros(
    form: tuple[bool, str, bool], name: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is placed is bit for bit what comes without an order; with no eps an empty place would be 0 / 0."""
    poison(monkeypatch)
    per_head, pairs, table_heads = form
    q, k, weight = random(2, 7, 3, 14).half(), random(2, 7, 3, 14, seed=1).half(), random(14 if per_head else 42)
    tables = angles(7, 14, *([3] if table_heads else []))
    for impl in ("triton", "reference"):
        how = {"per_head": per_head, "pairs": pairs, "impl": impl}
        plain = qk_norm_rope(q, k, weight, weight, *tables, eps, **how)
        for dtype in (torch.int32, torch.int64):
            order = torch.tensor(ORDERS[name], dtype=dtype)
            found = qk_norm_rope(q, k, weight, weight, *tables, eps, order=order, **how)
            for mine, tokens in zip(found, plain, strict=True):
                assert mine.shape == (2, len(order), 3, 14) and mine.is_contiguous()
                for place, token in enumerate(ORDERS[name]):
                    expected = tokens[:, token] if 0 <= token < 7 else torch.zeros_like(tokens[:, 0])
                    assert torch.equal(mine[:, place], expected), (impl, place)


def test_an_order_goes_through_autograd_and_tracing_and_into_given_outputs() -> None:
    q, k, weight = random(1, 5, 2, 6), random(1, 5, 2, 6, seed=1), random(12, seed=2)
    rest, order = (weight, weight, *angles(5, 6), EPS), torch.tensor([4, -1, 0, 4], dtype=torch.int32)
    expected = qk_norm_rope(q, k, *rest, order=order)
    outs = [torch.full((1, 4, 2, 6), torch.nan), torch.full((1, 6, 4, 2), torch.nan).permute(0, 2, 3, 1)]
    for impl in ("triton", "reference"):
        given = qk_norm_rope(q, k, *rest, order=order, out=outs, impl=impl)
        assert given[0] is outs[0] and given[1] is outs[1]
        for mine, theirs in zip(outs, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in (q, k, *rest)]
    assert [x.shape for x in qk_norm_rope(*meta, order=order.to("meta"))] == [x.shape for x in expected]
    q.requires_grad_()
    qk_norm_rope(q, k, *rest, order=order)[0].sum().backward()
    assert q.grad is not None and (q.grad[0].abs().flatten(1).sum(1) > 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_triton_takes_any_number_of_samples_and_strides(samples: int) -> None:
    fused = random(samples, 7, 3 * 4 * 10)
    q, k, _ = (part.unflatten(2, (4, 10)) for part in fused.chunk(3, dim=-1))
    turned = random(samples, 10, 4, 7, seed=1).permute(0, 3, 2, 1)
    by_head = random(samples, 4, 7, 10, seed=2).transpose(1, 2)
    rest = (random(40, seed=1), random(40, seed=2), *angles(7, 10), EPS)
    for pair in ((q, k), (turned, by_head), (q[:1].expand(samples, -1, -1, -1), by_head)):
        if pair[0].shape[0] == samples:
            for mine, theirs in zip(
                qk_norm_rope(*pair, *rest, impl="triton"), qk_norm_rope(*pair, *rest, impl="reference"), strict=True
            ):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
                assert mine.is_contiguous()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_row_that_is_not_finite_stays_so() -> None:
    q = random(1, 3, 2, 8)
    q[0, 1, 0, 3] = float("nan")
    q[0, 2, 1, 5] = float("inf")
    weight = random(16)
    for impl in ("native", "triton", "reference"):
        found = qk_norm_rope(q, q, weight, weight, *angles(3, 8), EPS, impl=impl)[0]
        assert found[0].flatten(1).isfinite().all(1).tolist() == [True, False, False], impl


def test_the_cpu_kernel_says_what_it_does_not_do() -> None:
    q = random(1, 5, 2, 8)
    with pytest.raises(UnsupportedError, match=r"not over each head.*half a head apart.*same angles for all heads"):
        qk_norm_rope(q, q, random(8), random(8), *angles(5, 8, 2), EPS, per_head=True, pairs="half", impl="native")


def test_no_angle_is_only_the_norm_and_pairs_keep_their_length() -> None:
    q, k, weight = random(2, 5, 3, 14), random(2, 5, 3, 14, seed=1), random(42)
    one, zero = torch.ones(5, 7), torch.zeros(5, 7)
    still, _ = qk_norm_rope(q, k, weight, weight, one, zero, EPS)
    expected = F.rms_norm(q.flatten(2), (42,), weight, EPS).view_as(q)
    torch.testing.assert_close(still, expected)
    turned, _ = qk_norm_rope(q, k, weight, weight, *angles(5, 14), EPS)
    lengths = [x.unflatten(-1, (-1, 2)).norm(dim=-1) for x in (still, turned)]
    torch.testing.assert_close(*lengths)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_slices_of_a_fused_projection(impl: str) -> None:
    fused = random(2, 11, 3 * 4 * 10)
    q, k, _ = (part.unflatten(2, (4, 10)) for part in fused.chunk(3, dim=-1))
    rest = (random(40, seed=1), random(40, seed=2), *angles(11, 10), EPS)
    found = qk_norm_rope(q, k, *rest, impl=impl)
    expected = qk_norm_rope(q.contiguous(), k.contiguous(), *rest, impl=impl)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.is_contiguous()


def test_heads_that_do_not_lie_together_are_copied_first() -> None:
    q = random(2, 4, 11, 10).transpose(1, 2)
    rest = (random(40, seed=1), random(40, seed=2), *angles(11, 10), EPS)
    found = qk_norm_rope(q, q, *rest, impl="native")[0]
    assert torch.equal(found, qk_norm_rope(q.contiguous(), q.contiguous(), *rest, impl="native")[0])


def test_threads_do_not_change_bits() -> None:
    q, k, weight = random(2, 301, 4, 32), random(2, 301, 4, 32, seed=1), random(128)
    args = (q, k, weight, weight, *angles(301, 32), EPS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = qk_norm_rope(*args)
        torch.set_num_threads(2)
        assert all(map(torch.equal, alone, qk_norm_rope(*args)))
    finally:
        torch.set_num_threads(before)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, weight = random(1, 5, 2, 8), random(16)
    with pytest.raises(ValueError, match=r"cos \[4, 4\]"):
        qk_norm_rope(q, q, weight, weight, *angles(4, 8), EPS)
    with pytest.raises(ValueError, match="even"):
        qk_norm_rope(random(1, 5, 2, 7), random(1, 5, 2, 7), random(14), random(14), *angles(5, 6), EPS)
    with pytest.raises(ValueError, match=r"k_weight \[8\]"):
        qk_norm_rope(q, q, weight, weight[:8], *angles(5, 8), EPS)
    with pytest.raises(ValueError, match=r"head_dim\] \(per_head\).*q_weight \[16\]"):
        qk_norm_rope(q, q, weight, weight, *angles(5, 8), EPS, per_head=True)
    with pytest.raises(ValueError, match=r"cos \[5, 3, 4\]"):
        qk_norm_rope(q, q, weight, weight, *angles(5, 8, 3), EPS)
    for order in (torch.zeros(5), torch.zeros(5, 1, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"qk_norm_rope takes order \[M\] int32 or int64; found \[5"):
            qk_norm_rope(q, q, weight, weight, *angles(5, 8), EPS, order=order)
    with pytest.raises(UnsupportedError, match="leaves tokens in their order"):
        qk_norm_rope(q, q, weight, weight, *angles(5, 8), EPS, order=torch.arange(5), impl="native")
    with pytest.raises(ValueError, match="did you mean 'half'"):
        qk_norm_rope(q, q, weight, weight, *angles(5, 8), EPS, pairs="halves")

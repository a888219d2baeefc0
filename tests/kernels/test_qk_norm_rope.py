"""qk_norm_rope: within the budget, equal to Diffusers' arithmetic, and a rotation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import ISAS, adversarial, check_budget, instruction_set, poison, random
from torch import Tensor

from glimt_kernels import qk_norm_rope

EPS = 1e-6
# heads, head_dim: one pair, a prime number of pairs, vectors and a rest, a real one.
SHAPES = [(1, 2), (3, 6), (3, 22), (2, 38), (5, 64), (12, 128)]


def angles(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    theta = random(tokens, head_dim // 2, seed=9) * 3
    return theta.cos(), theta.sin()


def honest(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As Diffusers' WanAttnProcessor computes it, for one of q and k."""
    x = F.rms_norm(x.flatten(2), weight.shape, weight, EPS).unflatten(2, x.shape[2:])
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    out = torch.zeros_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
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

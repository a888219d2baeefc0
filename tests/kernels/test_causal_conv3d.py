"""causal_conv3d and causal_conv3d_norm: within the budget, in chunks as in one, and who runs what and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import HALVES, adversarial, check_budget, poison, random
from torch import Tensor

from glimt_kernels import Case, UnsupportedError, causal_conv3d, causal_conv3d_norm, dispatch, rms_norm_silu, select
from glimt_kernels.causal_conv3d import cuda, tiles
from glimt_kernels.causal_conv3d.call import Call, channels_last, frames_dense
from glimt_kernels.causal_conv3d.tiles import Layer, Tile
from glimt_kernels.resources import SHARED_LIMIT
from glimt_kernels.triton_env import ARCHS

CL = torch.channels_last_3d
# (channels, N, taps, frames before x, whether two frames come of one). Ones, primes, beside the steps and tiles.
LAYERS = [
    (1, 1, (3, 3, 3), 2, False),
    (5, 7, (3, 3, 3), 1, False),
    (40, 24, (3, 3, 3), 0, False),
    (19, 10, (3, 1, 1), 2, True),
    (33, 17, (1, 1, 1), 0, False),
    (16, 48, (1, 3, 3), 0, False),
]
# Two tiles of pixels, several steps along K, one or two tiles of output channels in two parts.
SMALL = Tile(16, (16,), (32, 16), 4, 2)
WAN = [96, 192, 384, 160, 320, 640, 256, 512, 1024]


def arguments(
    channels: int, n: int, taps: tuple[int, int, int], known: int, turns: bool, *, frames: int = 2, batch: int = 1
) -> list[Tensor | None]:
    """x, weight, bias, past, plus."""
    size = channels * taps[0] * taps[1] * taps[2]
    past = channels_last(random(batch, channels, known, 3, 6, seed=4)) if known else None
    return [
        channels_last(random(batch, channels, frames, 3, 6, seed=1)),
        channels_last(random(n, channels, *taps, seed=2) / size**0.5),
        random(n, seed=3),
        past,
        channels_last(random(batch, n // (1 + turns), frames * (1 + turns), 3, 6, seed=5)),
    ]


def in_dtype(args: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in args]


def oracle(args: list[Tensor | None], turns: bool = False) -> Tensor:
    """The sum over all taps of a matrix times the picture, moved; in float64, without a convolution of PyTorch's."""
    x, weight, bias, past, plus = (None if t is None else t.double() for t in args)
    assert x is not None and weight is not None
    (n, _, times, rows, columns), (b, c, f, h, w) = weight.shape, x.shape
    known = 0 if past is None else past.shape[2]
    wide = torch.zeros(b, c, times - 1 + f, h + rows - 1, w + columns - 1, dtype=torch.float64)
    middle = wide[:, :, :, rows // 2 : rows // 2 + h, columns // 2 : columns // 2 + w]
    middle[:, :, times - 1 :] = x
    if past is not None:
        middle[:, :, times - 1 - known : times - 1] = past
    y = torch.zeros(b, n, f, h, w, dtype=torch.float64)
    for t, i, j in itertools.product(range(times), range(rows), range(columns)):
        y += torch.einsum("nc,bcfhw->bnfhw", weight[:, :, t, i, j], wide[:, :, t : t + f, i : i + h, j : j + w])
    if bias is not None:
        y += bias[:, None, None, None]
    if turns:
        y = torch.stack([y[:, : n // 2], y[:, n // 2 :]], dim=3).reshape(b, n // 2, 2 * f, h, w)
    return y if plus is None else y + plus


def plain(args: list[Tensor | None], turns: bool = False) -> Tensor:
    """As a model writes it in PyTorch, in the working dtype."""
    x, weight, bias, past, plus = args
    assert x is not None and weight is not None
    times, rows, columns = weight.shape[2:]
    frames = x if past is None else torch.cat([past, x], dim=2)
    frames = F.pad(frames, (0, 0, 0, 0, times - 1 - (frames.shape[2] - x.shape[2]), 0))
    y = F.conv3d(frames, weight, bias, padding=(0, rows // 2, columns // 2))
    if turns:
        b, n, f, h, w = y.shape
        y = y.view(b, 2, n // 2, f, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, n // 2, 2 * f, h, w)
    return y if plus is None else y + plus


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of which these small pictures have several; shipped ones would be mostly empty, and slow to interpret."""
    monkeypatch.setattr(tiles, "tile", lambda *args, **kwargs: SMALL)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_triton_within_budget(layer: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    turns = layer[-1]
    args = in_dtype(arguments(*layer), dtype)
    found = causal_conv3d(*args, interleave=turns, impl="triton")
    check_budget(found, plain(args, turns), oracle(args, turns))
    assert found.is_contiguous(memory_format=CL)


@pytest.mark.usefixtures("small")
def test_triton_without_bias_and_residual() -> None:
    x, weight, _, past, _ = arguments(19, 17, (2, 1, 1), 1, False)
    given = [x, weight, None, past, None]
    check_budget(causal_conv3d(*given, impl="triton"), plain(given), oracle(given))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_takes_adversarial_activations(dtype: torch.dtype) -> None:
    args = in_dtype(arguments(18, 5, (3, 1, 1), 1, False, frames=1), dtype)
    for name, frames in adversarial(1, 2, 3, 6, 18, dtype=dtype).items():
        moved = frames.permute(0, 4, 1, 2, 3)
        given = [moved[:, :, 1:], *args[1:3], moved[:, :, :1], args[4]]
        exact = oracle(given)
        if exact.abs().max() <= torch.finfo(dtype).max:
            check_budget(causal_conv3d(*given, impl="triton"), plain(given), exact, name)


def by_triton(op: str) -> Callable[..., Any]:
    (found,) = [candidate.run for candidate in dispatch.candidates(op) if candidate.impl == "triton"]
    return found


@pytest.mark.parametrize("arch", [80, 86, 90])
@pytest.mark.parametrize("n", [96, 272])
def test_tiles_that_are_shipped_within_budget(n: int, arch: int) -> None:
    args = in_dtype(arguments(96, n, (2, 1, 1), 1, False, frames=1), torch.float16)
    run = by_triton("causal_conv3d")
    check_budget(run(*args, arch=arch), plain(args), oracle(args))
    gamma = random(n, seed=6).half()
    run = by_triton("causal_conv3d_norm")
    normed, y = run(*args, gamma, arch=arch)
    check_budget(y, plain(args), oracle(args))
    check_budget(normed, *norms(args, gamma))


def norms(args: list[Tensor | None], gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(as a model does it in the working dtype, exactly) of the norm with SiLU behind the convolution."""
    found = []
    for y, weight in ((plain(args), gamma), (oracle(args), gamma.double())):
        rows = F.normalize(y, dim=1, eps=1e-12) * y.shape[1] ** 0.5 * weight[:, None, None, None]
        found.append(F.silu(rows))
    return found[0], found[1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layer", [(5, 7, (3, 1, 1), 1, False), (20, 48, (1, 1, 1), 0, False)], ids=str)
def test_the_norm_behind_it_within_budget(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    args, gamma = in_dtype(arguments(*layer), torch.float16), random(layer[1], seed=6).half()
    for given in (args, [*args[:2], None, args[3], None]):
        normed, y = causal_conv3d_norm(*given, gamma, impl="triton")
        check_budget(normed, *norms(given, gamma))
        assert y is not None and torch.equal(y, causal_conv3d(*given, impl="triton"))
        alone, nothing = causal_conv3d_norm(*given, gamma, keep=False, impl="triton")
        assert nothing is None and torch.equal(alone, normed)


@pytest.mark.usefixtures("small")
def test_what_is_normalized_is_the_convolution_as_it_is_stored() -> None:
    args, gamma = in_dtype(arguments(4, 16, (1, 1, 1), 0, False), torch.float16), random(16, seed=6).half()
    args[4] = channels_last(torch.full_like(args[4], 3000.0))  # of the convolution only some bits are left
    normed, y = causal_conv3d_norm(*args, gamma, impl="triton")
    again = rms_norm_silu(y.permute(0, 2, 3, 4, 1), gamma, impl="reference").permute(0, 4, 1, 2, 3)
    assert (normed == again).float().mean() > 0.98  # nearly all to the bit; the order of the squares' sum may differ
    torch.testing.assert_close(normed, again, rtol=2e-3, atol=1e-3)


@pytest.mark.usefixtures("small")
def test_a_pixel_of_zeros_and_one_that_is_no_number() -> None:
    x, weight = torch.zeros(1, 16, 1, 2, 3).half(), random(16, 16, 1, 1, 1).half()
    x[0, 3, 0, 1, 1] = float("nan")
    normed, y = causal_conv3d_norm(x, weight, None, None, None, torch.ones(16).half(), impl="triton")
    assert y is not None
    for found in (normed, y):
        bad = found.isnan().any(1)
        assert bad.sum() == 1 and bad[0, 0, 1, 1] and not found.isnan().all(1).sum() - 1
        assert (found.nan_to_num() == 0).all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("impl", ["triton", "onednn", "aten", "reference"])
@pytest.mark.parametrize("plan", [(1, 4, 4), (2, 1, 3, 3), (4, 5)], ids=str)
def test_in_chunks_as_in_one(plan: tuple[int, ...], impl: str) -> None:
    """The frames before a chunk are a view of the clip: nothing is put together beforehand."""
    x, weight, bias, _, plus = arguments(6, 5, (3, 1, 1), 0, False, frames=9)
    x, plus = x[:, :, :, :2], plus[:, :, :, :2]
    whole = causal_conv3d(x, weight, bias, None, plus, impl=impl)
    first = 0
    for count in plan:
        past, part = x[:, :, max(first - 2, 0) : first], slice(first, first + count)
        found = causal_conv3d(x[:, :, part], weight, bias, past, plus[:, :, part], impl=impl)
        if impl == "triton":
            assert torch.equal(found, whole[:, :, part])
        torch.testing.assert_close(found, whole[:, :, part], rtol=1e-5, atol=1e-5)
        first += count


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("impl", ["triton", "onednn", "aten", "reference"])
def test_frames_that_are_not_there_are_zeros(impl: str) -> None:
    x, weight, bias, past, plus = arguments(6, 5, (3, 1, 1), 2, False)
    for known in (0, 1):
        zeros = past.clone()
        zeros[:, :, : 2 - known] = 0
        found = causal_conv3d(x, weight, bias, past[:, :, 2 - known :], plus, impl=impl)
        torch.testing.assert_close(found, causal_conv3d(x, weight, bias, zeros, plus, impl=impl), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_number_of_samples_and_strides(batch: int) -> None:
    """Frames and samples lie where they will; frames with gaps, or channels outermost, are copied."""
    x, weight, bias, past, plus = arguments(6, 5, (3, 1, 1), 2, False, batch=batch)
    expected = causal_conv3d(x, weight, bias, past, plus, impl="reference")

    def apart(t: Tensor) -> Tensor:
        """Every other frame and sample of a larger one."""
        b, c, f, h, w = t.shape
        return channels_last(random(2 * b, c, 2 * f, h, w))[::2, :, 1::2].copy_(t)

    def cropped(t: Tensor) -> Tensor:
        b, c, f, h, w = t.shape
        return channels_last(random(b, c, f, h + 2, w + 3))[:, :, :, 1 : h + 1, 2 : w + 2].copy_(t)

    assert batch == 0 or all(frames_dense(apart(t)) is not None for t in (x, past))
    for moved in (apart, cropped, torch.Tensor.contiguous):
        given = [moved(x), weight.contiguous(), torch.stack([bias, bias], 1)[:, 0], moved(past), moved(plus)]
        torch.testing.assert_close(causal_conv3d(*given, impl="triton"), expected, rtol=1e-5, atol=1e-5)
    found = causal_conv3d(x, weight, bias, apart(past), plus, impl="triton")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_read_in_place() -> None:
    x = channels_last(random(2, 6, 5, 4, 7))
    for view in (x, x[:, :, 3:], x[:, :, ::2], x[1:], x[:, :, :, :2], x.transpose(0, 2)[:, :, :1]):
        assert frames_dense(view) is view
    for view in (x[..., 1:], x[:, 1:], x.contiguous(), x.flip(4)[..., ::2]):
        dense = frames_dense(view)
        assert dense is not view and torch.equal(dense, view) and frames_dense(dense) is dense


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_reference_and_the_libraries_are_the_definition(layer: Any) -> None:
    turns, args = layer[-1], arguments(*layer)
    for given in (args, [*args[:2], None, args[3], None]):
        exact = oracle(given, turns)
        found = causal_conv3d(*in_dtype(given, torch.float64), interleave=turns, impl="reference")
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
        for impl in ("onednn", "aten"):
            found = causal_conv3d(*given, interleave=turns, impl=impl)
            torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5, msg=impl)
            assert found.is_contiguous(memory_format=CL)


def test_the_norm_apart_is_the_reference_and_on_cpus_the_choice() -> None:
    args, gamma = arguments(5, 7, (3, 3, 3), 2, False), random(7, seed=6)
    for keep in (True, False):
        expected = causal_conv3d_norm(*args, gamma, keep=keep, impl="reference")
        found = causal_conv3d_norm(*args, gamma, keep=keep)
        for mine, right in zip(found, expected, strict=True):
            assert (mine is None) == (right is None) == (not keep and right is not expected[0])
            if mine is not None and right is not None:
                torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
                assert mine.is_contiguous(memory_format=CL)


def test_who_runs_where_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Case("cuda", torch.bfloat16, arch=90, sizes=Call(384))
    wide = gpu._replace(sizes=Call(512))
    full = gpu._replace(dtype=torch.float32)

    def chosen(op: str, *cases: Case) -> list[str]:
        return [dispatch.built_in(op, case).impl for case in cases]

    monkeypatch.setattr(cuda, "absent", lambda: "not in this build")
    assert chosen("causal_conv3d", gpu, wide, full) == ["triton", "triton", "aten"]
    assert chosen("causal_conv3d_norm", gpu, wide, full) == ["triton", "apart", "apart"]
    monkeypatch.setattr(cuda, "absent", lambda: None)
    assert chosen("causal_conv3d", gpu, wide, full) == ["cuda", "triton", "aten"]
    assert chosen("causal_conv3d_norm", gpu, gpu._replace(sizes=Call(192))) == ["triton", "cuda"]
    assert select("causal_conv3d", Case("cpu", torch.float32)).impl == "onednn"
    assert select("causal_conv3d", Case("cpu", torch.bfloat16)).impl == "aten"
    with pytest.raises(UnsupportedError, match="at most 384 channels of a pixel in one program, found 512"):
        select("causal_conv3d_norm", wide, "triton")
    with pytest.raises(UnsupportedError, match="no empty tensors"):
        causal_conv3d(torch.empty(0, 4, 1, 2, 2), random(4, 4, 1, 1, 1), impl="onednn")


@pytest.mark.parametrize("arch", ARCHS)
def test_every_layer_of_wan_fits_shared_memory_and_nothing_is_multiplied_in_vain(arch: int) -> None:
    for n, dtype in itertools.product(WAN, (torch.bfloat16, torch.float32)):
        for norm in (False, True)[: 1 + (n <= tiles.FUSED and dtype != torch.float32)]:
            chosen = tiles.tile(arch, dtype, Layer(n, n), norm=norm)
            size = (chosen.m + sum(chosen.n)) * sum(chosen.k) * dtype.itemsize
            assert chosen.stages >= 2
            assert size * (chosen.stages - (arch not in (90, 100))) <= SHARED_LIMIT[arch]
            assert n % sum(chosen.n) == 0 and n % sum(chosen.k) == 0
            assert not norm or sum(chosen.n) == n


def test_parts_make_up_the_whole() -> None:
    for size in range(1, 400):
        found = tiles.parts(size, 128)
        assert 0 <= sum(found) - size < 16 and all(part in (16, 32, 64, 128) for part in found)
    assert tiles.starts((64, 32)) == (0, 64, 96)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight = random(1, 4, 2, 3, 3), random(6, 4, 3, 3, 3)
    for wrong in (
        {"weight": random(6, 5, 3, 3, 3)},
        {"weight": random(6, 4, 3, 2, 2)},
        {"bias": random(5)},
        {"past": random(1, 4, 3, 3, 3)},
        {"past": random(1, 4, 2, 3, 4)},
        {"plus": random(1, 6, 2, 3, 4)},
        {"plus": random(1, 6, 2, 3, 3), "interleave": True},
        {"weight": random(5, 4, 3, 3, 3), "interleave": True},
        {"bias": random(6).half()},
    ):
        with pytest.raises(ValueError, match=r"a causal convolution takes .* found x \[1, 4, 2, 3, 3\]"):
            causal_conv3d(**{"x": x, "weight": weight, **wrong})
    with pytest.raises(ValueError, match=r"gamma \[5\]"):
        causal_conv3d_norm(x, weight, None, None, None, random(5))

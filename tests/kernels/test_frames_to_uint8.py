"""frames_to_uint8: every implementation gives Diffusers' bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from budget import ISAS, instruction_set, poison, random
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from glimt_kernels import frames_to_uint8


def diffusers_bytes(pixels: Tensor) -> Tensor:
    images = VideoProcessor(vae_scale_factor=8).postprocess_video(pixels, output_type="np")
    return torch.from_numpy((images * 255).round().astype("uint8"))


def delicate() -> Tensor:
    """Every level, every half between two levels, and the floats next to each."""
    halves = (torch.arange(-4, 515).double() / 2 / 255 * 2 - 1).float()
    near = [torch.nextafter(halves, torch.full_like(halves, sign * 9.0)) for sign in (-1, 1)]
    values = torch.cat([halves, *near])
    return values[: len(values) // 3 * 3].view(1, 3, 1, 1, -1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (2, 3, 3, 5, 7), (1, 3, 2, 16, 48), (1, 3, 2, 3, 523)])
def test_equal_to_diffusers(isa: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random(*shape)
    expected = diffusers_bytes(pixels)
    poison(monkeypatch)
    with instruction_set(isa):
        assert torch.equal(frames_to_uint8(pixels, impl="native"), expected)
        channels_last = pixels.contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(frames_to_uint8(channels_last, impl="native"), expected)
        transposed = pixels.transpose(3, 4).contiguous().transpose(3, 4)
        assert torch.equal(frames_to_uint8(transposed, impl="native"), expected)
    assert torch.equal(frames_to_uint8(pixels, impl="reference"), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_halves_go_to_even(isa: str) -> None:
    pixels = delicate()
    with instruction_set(isa):
        assert torch.equal(frames_to_uint8(pixels, impl="native"), diffusers_bytes(pixels))
    assert torch.equal(frames_to_uint8(pixels, impl="reference"), diffusers_bytes(pixels))


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_what_is_no_colour(impl: str) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -0.0])
    pixels = values.view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    found = frames_to_uint8(pixels, impl=impl)
    assert found[0, 0, 0, :, 0].tolist() == [0, 255, 0, 255, 0, 128]


def test_slices_and_empty_clips() -> None:
    pixels = random(2, 4, 6, 5, 9)
    view = pixels[:, 1:, ::2, 1:4, 2:]
    assert torch.equal(frames_to_uint8(view), frames_to_uint8(view.contiguous()))
    assert frames_to_uint8(pixels[:, :3, :0]).shape == (2, 0, 5, 9, 3)


def test_other_dtypes_take_the_reference() -> None:
    pixels = random(1, 3, 2, 4, 5).bfloat16()
    assert torch.equal(frames_to_uint8(pixels), diffusers_bytes(pixels.float()))


def test_frames_own_their_bytes() -> None:
    array = frames_to_uint8(random(1, 3, 2, 4, 5)).numpy()
    assert array.flags.c_contiguous
    assert array.dtype == np.uint8


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 4, 2, 2, 2\]"):
        frames_to_uint8(random(1, 4, 2, 2, 2))


@pytest.mark.gpu
def test_cuda_gives_the_same_bytes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for pixels in (delicate(), random(2, 3, 3, 5, 7), random(1, 3, 2, 9, 523)):
        expected = frames_to_uint8(pixels, impl="reference")
        assert torch.equal(frames_to_uint8(pixels.cuda(), impl="cuda").cpu(), expected)

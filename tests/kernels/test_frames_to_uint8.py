"""frames_to_uint8: every implementation gives Diffusers' bytes. frames_to_nv12, _yuv420: the colours of BT.709."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from budget import HALVES, ISAS, instruction_set, poison, random
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from glimt_kernels import frames_to_nv12, frames_to_uint8, frames_to_yuv420


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


# One pixel; a prime width, and one that is no multiple of four; of four; of sixteen; more than a program's run.
@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1, 1), (2, 3, 3, 5, 7), (1, 3, 2, 3, 20), (3, 3, 2, 4, 48), (1, 3, 1, 3, 733)]
)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_gives_the_same_bytes(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = random(*shape).to(dtype)
    expected = diffusers_bytes(pixels.float())
    padded = torch.zeros(*shape[:4], shape[4] + 3, dtype=dtype)
    padded[..., : shape[4]] = pixels
    layouts = (
        pixels,
        pixels.contiguous(memory_format=torch.channels_last_3d),
        pixels.transpose(3, 4).contiguous().transpose(3, 4),
        padded[..., : shape[4]],
        padded.contiguous(memory_format=torch.channels_last_3d)[..., : shape[4]],
    )
    poison(monkeypatch)
    for layout in layouts:
        assert torch.equal(frames_to_uint8(layout, impl="triton"), expected)


def test_triton_rounds_halves_to_even() -> None:
    pixels = delicate()
    assert torch.equal(frames_to_uint8(pixels, impl="triton"), diffusers_bytes(pixels))
    packed = pixels.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(frames_to_uint8(packed, impl="triton"), diffusers_bytes(pixels))


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
def test_what_is_no_colour(impl: str) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -0.0])
    pixels = values.view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    found = frames_to_uint8(pixels, impl=impl)
    assert found[0, 0, 0, :, 0].tolist() == [0, 255, 0, 255, 0, 128]


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
def test_slices_and_empty_clips(impl: str) -> None:
    pixels = random(2, 4, 6, 5, 9)
    view = pixels[:, 1:, ::2, 1:4, 2:]
    assert torch.equal(frames_to_uint8(view, impl=impl), diffusers_bytes(view.contiguous()))
    assert frames_to_uint8(pixels[:, :3, :0], impl=impl).shape == (2, 0, 5, 9, 3)
    assert frames_to_uint8(pixels[:0, :3], impl=impl).shape == (0, 6, 5, 9, 3)


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
        assert torch.equal(frames_to_uint8(pixels.cuda(), impl="triton").cpu(), expected)


# 100 % colour bars: R, G, B and their Y, Cb, Cr in BT.709, limited range, as published for HDTV.
BARS = {
    (1, 1, 1): (235, 128, 128),
    (1, 1, 0): (219, 16, 138),
    (0, 1, 1): (188, 154, 16),
    (0, 1, 0): (173, 42, 26),
    (1, 0, 1): (78, 214, 230),
    (1, 0, 0): (63, 102, 240),
    (0, 0, 1): (32, 240, 118),
    (0, 0, 0): (16, 128, 128),
}


def planes(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y [B, F, H, W], Cb and Cr [B, F, H / 2, W / 2] of NV12 frames."""
    height = frames.shape[2] // 3 * 2
    both = frames[:, :, height:].unflatten(-1, (-1, 2))
    return frames[:, :, :height], both[..., 0], both[..., 1]


def apart(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of planar frames: as many bytes as FFmpeg's yuv420p, in its order."""
    b, f, lines, width = frames.shape
    height = lines // 3 * 2
    chroma = frames.reshape(b, f, lines * width)[..., height * width :].view(b, f, 2, height // 2, width // 2)
    return frames[:, :, :height], chroma[:, :, 0], chroma[:, :, 1]


ENCODED = {"nv12": (frames_to_nv12, planes), "yuv420": (frames_to_yuv420, apart)}


def exact_nv12(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By the matrix of BT.709, before rounding, float64."""
    rows = [
        [0.2126, 0.7152, 0.0722],
        [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.9278 / 1.8556],
        [0.7874 / 1.5748, -0.7152 / 1.5748, -0.0722 / 1.5748],
    ]
    matrix = torch.tensor(rows, dtype=torch.float64)
    unit = (pixels.double() / 2 + 0.5).clamp(0, 1)
    y, cb, cr = torch.einsum("ij,bjfhw->ibfhw", matrix, unit)
    pool = torch.nn.functional.avg_pool2d
    return 16 + 219 * y, 128 + 224 * pool(cb, 2), 128 + 224 * pool(cr, 2)


@pytest.mark.parametrize("layout", ENCODED)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_colour_bars(impl: str, layout: str) -> None:
    encode, split = ENCODED[layout]
    colours = torch.tensor(list(BARS)).float() * 2 - 1  # [8, 3]
    pixels = colours.T.reshape(1, 3, 1, 1, 8).repeat_interleave(6, -1).expand(1, 3, 2, 4, 48)
    frames = encode(pixels, impl=impl)
    assert frames.shape == (1, 2, 6, 48)
    for plane, column in zip(split(frames), range(3), strict=True):
        found = plane[0, 1, -1].unflatten(0, (8, -1)).int()
        expected = torch.tensor([bar[column] for bar in BARS.values()])
        assert ((found - expected[:, None]).abs() <= 1).all()


@pytest.mark.parametrize("layout", ENCODED)
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 1, 2, 2), (3, 3, 2, 22, 6), (1, 3, 2, 6, 518), (0, 3, 2, 4, 6)])
def test_nv12_is_the_nearest_level(
    shape: tuple[int, ...], dtype: torch.dtype, impl: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, split = ENCODED[layout]
    pixels = random(*shape).to(dtype)
    poison(monkeypatch)
    layouts = [pixels, pixels.transpose(3, 4).contiguous().transpose(3, 4)]
    layouts.append(pixels.contiguous(memory_format=torch.channels_last_3d))
    for given in layouts:
        frames = encode(given, impl=impl)
        assert frames.is_contiguous()
        for plane, exact in zip(split(frames), exact_nv12(pixels), strict=True):
            assert plane.shape == exact.shape
            assert ((plane.double() - exact).abs() <= 0.5001).all()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_nv12_of_what_is_no_colour(impl: str) -> None:
    values = torch.tensor([float("nan"), -float("inf"), float("inf"), 1e30, -1e30, -0.0])
    pixels = values.view(1, 1, 1, 1, 6).expand(1, 3, 1, 2, 6)
    luma, cb, cr = planes(frames_to_nv12(pixels, impl=impl))
    assert luma[0, 0, 1].tolist() == [16, 16, 235, 235, 16, 126]  # 125.5, to even
    assert torch.equal(cb, cr)
    assert (cb == 128).all()


@pytest.mark.parametrize("layout", ENCODED)
def test_nv12_refuses_odd_sizes(layout: str) -> None:
    encode, _ = ENCODED[layout]
    with pytest.raises(ValueError, match=rf"frames_to_{layout} takes an even height.* 5 x 7, cut it to 4 x 6"):
        encode(random(1, 3, 2, 5, 7))
    with pytest.raises(ValueError, match=r"\[1, 4, 2, 2, 2\]"):
        encode(random(1, 4, 2, 2, 2))


def test_an_encoder_reads_the_planes_as_they_are() -> None:
    """FFmpeg's own conversion of a frame with areas of the bars' colours, from yuv420p to RGB, gives them back."""
    colours = torch.tensor(list(BARS)).float() * 2 - 1
    pixels = colours.T.reshape(1, 3, 1, 1, 8).repeat_interleave(16, -1).expand(1, 3, 1, 32, 128)
    frame = av.VideoFrame.from_ndarray(frames_to_yuv420(pixels)[0, 0].numpy(), format="yuv420p")
    frame.colorspace, frame.color_range = av.video.reformatter.Colorspace.ITU709, av.video.reformatter.ColorRange.MPEG
    found = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).int()
    expected = ((pixels[0, :, 0] + 1) / 2 * 255).int()
    middle = torch.arange(128) % 16
    inside = (middle > 2) & (middle < 13)  # away from edges, across which chroma is interpolated
    assert ((found - expected).abs()[:, :, inside] <= 3).all()


@pytest.mark.gpu
def test_nv12_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pixels = random(2, 3, 3, 22, 518)
    for encode, split in ENCODED.values():
        for plane, exact in zip(split(encode(pixels.cuda()).cpu()), exact_nv12(pixels), strict=True):
            assert ((plane.double() - exact).abs() <= 0.5001).all()

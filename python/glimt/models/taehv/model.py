"""The tiny autoencoder of the TAEHV form as one definition: training, inference, whole clips and streams.

    block   relu(x + conv(relu(conv(relu(conv([x, past]))))))   past: the frame before, zeros before the first
    level   blocks, then every frame doubled in H and W (nearest), spread over `frames` frames (1x1), convolved (3x3)

A convolution of ``[x, past]`` stacked is a causal one over two frames, and the 1x1 that spreads in time has no bias and
no activation around it, so it goes into the 3x3 behind it: one upsampling convolution a level, whose output channels
are then dealt out to frames. Exact algebra; the sums are rounded in another order.

Any split of a clip into chunks gives the same frames: a chunk of everything is the published *parallel* mode, chunks of
one latent frame the *sequential* one. Names of parameters are the published ones.
Source: https://github.com/madebyollin/taehv
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimt.models.taehv.config import TinyConfig, TinyHalf, TinyLevel
from glimt.models.taehv.state import TinyState
from glimt.models.wan.vae_ops import conv3d, upsample_conv
from glimt_kernels.causal_conv3d.call import interleaved


class Conv(nn.Conv2d):
    """Convolution of every frame of ``[B, C, F, H, W]`` by itself, padded to the same size (at stride 1)."""

    def __init__(self, a: int, b: int, kernel: int = 3, *, bias: bool = True, groups: int = 1, stride: int = 1) -> None:
        super().__init__(a, b, kernel, padding=kernel // 2, bias=bias, groups=groups, stride=stride)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """The convolution of ``x``, and ``plus`` (of its shape) added to it."""
        (side, _), (step, _) = self.kernel_size, self.stride
        if self.groups > 1:
            out = F.conv3d(x, self.weight[:, :, None], self.bias, padding=(0, side // 2, side // 2), groups=self.groups)
            return out if plus is None else out + plus
        pad, stride = (0, side // 2, side // 2), (1, step, step)
        return conv3d(x, self.weight[:, :, None], self.bias, padding=pad, stride=stride, plus=plus)


class MemoryConv(Conv):
    """Convolution of each frame stacked on the one before it: ``[B, C, F, H, W]``, weight ``[C_out, 2 C, k, k]``."""

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """``past [B, C, 1, H, W]`` is the frame before the first of ``x``; zeros if there is none."""
        channels, half = x.shape[1], self.kernel_size[0] // 2
        now, before = self.weight[:, :channels], self.weight[:, channels:]
        x = torch.cat([torch.zeros_like(x[:, :, :1]) if past is None else past, x], dim=2)
        return conv3d(x, torch.stack([before, now], dim=2), self.bias, padding=(0, half, half))


class MemoryBlock(nn.Module):
    """The residual block, plain or wide (see :class:`TinyLevel`)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        if groups:
            convs = [
                MemoryConv(2 * width, width, 1),
                Conv(width, width, groups=groups),
                Conv(width, width, 1),
                Conv(width, width, groups=groups),
            ]
        else:
            convs = [MemoryConv(2 * width, width), Conv(width, width), Conv(width, width)]
        # In the published files the activations between are numbered too.
        self.conv = nn.ModuleDict({str(2 * i): conv for i, conv in enumerate(convs)})

    def forward(self, x: Tensor, state: TinyState) -> Tensor:
        first, *middle, last = self.conv.values()
        y = F.relu(first(x, state.frames.get(self)), inplace=True)
        state.frames[self] = x[:, :, -1:].clone()  # a view would keep the whole chunk alive
        for conv in middle:
            y = F.relu(conv(y), inplace=True)
        return F.relu(last(y, plus=x), inplace=True)


class TimeChange(nn.Module):
    """A 1x1 convolution between ``frames`` frames and one, the frames stacked on the channels."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv = Conv(a, b, 1, bias=False)


class Decoder(nn.ModuleDict):
    """Latents to the channels that are RGB once their patches are unfolded."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        half = config.decoder
        widths = [level.width for level in half.levels]
        self["1"] = Conv(config.latent_channels, widths[0])
        number = 3
        self.numbers: list[int] = []  # of the layers that grow in time
        for level, after in zip(half.levels, [*widths[1:], half.outer], strict=True):
            for i in range(level.blocks):
                self[str(number + i)] = MemoryBlock(level.width, level.groups)
            number += level.blocks + 1  # doubling H and W has a number
            self[str(number)] = TimeChange(level.width, level.width * level.frames)
            self[str(number + 1)] = Conv(level.width, after, bias=False)
            self.numbers.append(number)
            number += 2
        self[str(number + 1)] = Conv(half.outer, 3 * config.patch_size**2)
        self.levels = half.levels

    def forward(self, z: Tensor, state: TinyState, doublings: int, grow: bool) -> Tensor:
        x = F.relu(self["1"](torch.tanh(z / 3) * 3), inplace=True)
        for i, (level, number) in enumerate(zip(self.levels, self.numbers, strict=True)):
            for block in range(number - 1 - level.blocks, number - 1):
                x = self[str(block)](x, state)
            x = self._rise(x, level, number, double=i < doublings, frames=level.frames if grow else 1)
        head = self[str(self.numbers[-1] + 3)]
        out: Tensor = head(F.relu(x, inplace=True))
        return out

    def _rise(self, x: Tensor, level: TinyLevel, number: int, *, double: bool, frames: int) -> Tensor:
        """To the next level: H and W doubled, a frame become ``frames`` of those it stands for (the last ones)."""
        grow, conv = self[str(number)], self[str(number + 1)]
        assert isinstance(grow, TimeChange) and isinstance(conv, Conv)
        spread = grow.conv.weight[-frames * level.width :].view(frames, level.width, level.width)
        weight = torch.einsum("odyx,sdc->socyx", conv.weight, spread).flatten(0, 1)
        if not double:
            x = conv3d(x, weight[:, :, None], None, padding=(0, 1, 1))
        else:
            x = upsample_conv(x, weight, None)
        return deal_frames(x, frames)


class Encoder(nn.ModuleDict):
    """Pixels, their patches folded into channels, to latents."""

    def __init__(self, config: TinyConfig, half: TinyHalf) -> None:
        super().__init__()
        self["0"] = Conv(3 * config.patch_size**2, half.outer)
        number, before = 2, half.outer
        self.numbers: list[int] = []  # of the layers that pool in time
        for level in half.levels:
            self[str(number)] = TimeChange(before * level.frames, before)
            self[str(number + 1)] = Conv(before, level.width, bias=False, stride=2)
            self.numbers.append(number)
            number += 2
            for i in range(level.blocks):
                self[str(number + i)] = MemoryBlock(level.width, level.groups)
            number, before = number + level.blocks, level.width
        self[str(number)] = Conv(before, config.latent_channels)
        self.levels, self.latent_channels = half.levels, config.latent_channels

    def forward(self, x: Tensor, state: TinyState) -> Tensor:
        x = F.relu(self["0"](x), inplace=True)
        for level, number in zip(self.levels, self.numbers, strict=True):
            x = self._pool(x, self[str(number)], level.frames, state)
            if not x.shape[2]:
                return self._nothing(x, number)
            x = self[str(number + 1)](x)
            for block in range(number + 2, number + 2 + level.blocks):
                x = self[str(block)](x, state)
        out: Tensor = self[str(self.numbers[-1] + 2 + self.levels[-1].blocks)](x)
        return out

    def _nothing(self, x: Tensor, number: int) -> Tensor:
        """No latent frames, for a chunk of which all frames wait in the pool ``number``."""
        b, _, _, h, w = x.shape
        for _ in range(self.numbers.index(number), len(self.numbers)):
            h, w = (h + 1) // 2, (w + 1) // 2
        return x.new_empty(b, self.latent_channels, 0, h, w)

    def _pool(self, x: Tensor, pool: nn.Module, frames: int, state: TinyState) -> Tensor:
        """Every ``frames`` frames as one; those left over wait for the next chunk."""
        if frames > 1:
            waiting = state.frames.get(pool)
            x = x if waiting is None else torch.cat([waiting, x], dim=2)
            whole = x.shape[2] // frames * frames
            state.frames[pool] = x[:, :, whole:].clone()
            x = stack_frames(x[:, :, :whole], frames)
            if not whole:
                return x
        out: Tensor = pool.conv(x)  # type: ignore[operator]
        return out


class TinyAutoencoder(nn.Module):
    """Decoder, and encoder where the file has one. Pixels are in [-1, 1], as those of the full autoencoders.

    Latents are normalized: those the transformer works in, whatever statistics the full autoencoder has.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.encoder = Encoder(config, config.encoder) if config.encoder is not None else None

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, 1 + t (f - 1), s h, s w], clamped, of a whole clip of latents [B, C, f, h, w]."""
        return self.decode_chunk(latents, TinyState()).clamp(-1.0, 1.0)

    def decode_chunk(self, latents: Tensor, state: TinyState) -> Tensor:
        """The next latent frames of a clip as pixels, not clamped; any split of a clip gives the same frames."""
        y = self.decoder(latents, state, len(self.config.decoder.levels), True)
        lost, state.first = (self.config.trim if state.first else 0), False
        return unfold_patches(y[:, :, lost:], self.config.patch_size) * 2 - 1

    def glimpse(self, latents: Tensor, doublings: int) -> Tensor:
        """A small clip at a small cost: a frame for each latent frame, [B, 3, f, k h, k w] with k = p 2^doublings.

        Levels from number ``doublings`` on leave H and W as they are, and none grows in time; of the frames that a
        latent frame stands for this is the last.
        """
        y = self.decoder(latents, TinyState(), doublings, False)
        return (unfold_patches(y, self.config.patch_size) * 2 - 1).clamp(-1.0, 1.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [B, C, ceil(F / t), h, w] of a whole clip [B, 3, F, H, W]; the last frame is repeated to fill up."""
        return self.encode_chunk(pixels, TinyState(), last=True)

    def encode_chunk(self, pixels: Tensor, state: TinyState, *, last: bool) -> Tensor:
        """The next frames of a clip: as many latent frames as have become whole, and with ``last`` all of them.

        Raises:
            ValueError: the file had no encoder.
        """
        if self.encoder is None or self.config.encoder is None:
            raise ValueError("this tiny autoencoder has no encoder: its file held a decoder alone")
        factor = self.config.encoder.frames
        seen = state.seen + pixels.shape[2]
        if last and seen % factor:
            more = pixels[:, :, -1:].expand(-1, -1, factor - seen % factor, -1, -1)
            pixels = torch.cat([pixels, more], dim=2)
        state.seen, state.first = seen, False
        out: Tensor = self.encoder(fold_patches((pixels + 1) / 2, self.config.patch_size), state)
        return out


def deal_frames(x: Tensor, frames: int) -> Tensor:
    """``[B, n C, F, H, W] -> [B, C, n F, H, W]``: the n parts of a frame's channels become n frames."""
    if frames == 1:
        return x
    if frames == 2:
        return interleaved(x)
    b, c, f, h, w = x.shape
    x = x.view(b, frames, c // frames, f, h, w).permute(0, 2, 3, 1, 4, 5)
    return x.reshape(b, c // frames, frames * f, h, w)


def stack_frames(x: Tensor, frames: int) -> Tensor:
    """The inverse of :func:`deal_frames`."""
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f // frames, frames, h, w).permute(0, 3, 1, 2, 4, 5)
    return x.reshape(b, frames * c, f // frames, h, w)


def unfold_patches(x: Tensor, size: int) -> Tensor:
    """``[B, C p^2, F, H, W] -> [B, C, F, p H, p W]``; channel order (c, row, column)."""
    if size == 1:
        return x
    b, c, f, h, w = x.shape
    x = x.reshape(b, c // size**2, size, size, f, h, w).permute(0, 1, 4, 5, 2, 6, 3)
    return x.reshape(b, c // size**2, f, h * size, w * size)


def fold_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of :func:`unfold_patches`."""
    if size == 1:
        return x
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f, h // size, size, w // size, size).permute(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(b, c * size**2, f, h // size, w // size)

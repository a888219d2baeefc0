"""The Wan causal video autoencoder, 2.1 (plain) and 2.2 (residual) form, as one definition.

Pixels [B, 3, F, H, W] in [-1, 1] <-> latents [B, z_dim, f, h, w]: ``F = 1 + scale_t * (f - 1)``, ``H = scale_s * h``.
``encode_chunk`` and ``decode_chunk`` carry a :class:`CausalCache`; ``encode`` and ``decode`` do a whole clip with them.
Source: Wan 2.1 technical report (section 4.1); parameter names as in Diffusers' ``AutoencoderKLWan``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from glimt.models.wan import vae_ops
from glimt.models.wan.config import WanVaeConfig
from glimt.models.wan.vae_blocks import (
    CausalConv3d,
    ChannelRmsNorm,
    Downsample,
    FoldShortcut,
    FrameAttention,
    MidBlock,
    ResidualBlock,
    UnfoldShortcut,
    Upsample,
    in_turn,
)
from glimt.models.wan.vae_cache import CausalCache, joined


class ResidualDownBlock(nn.Module):
    """Wan 2.2: residual blocks and a downsampler beside a parameter-free folding shortcut."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, *, down: bool, temporal: bool) -> None:
        super().__init__()
        self.avg_shortcut = FoldShortcut(
            in_channels, out_channels, factor_t=2 if temporal else 1, factor_s=2 if down else 1
        )
        widths = [in_channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.downsampler = Downsample(out_channels, temporal=temporal) if down else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        start = x
        for block in self.resnets:
            x = block(x, cache)
        if self.downsampler is not None:
            x = self.downsampler(x, cache)
        if not x.shape[2]:  # the frame waits for the one that it is merged with
            cache.hold(self, start)
            return x
        before = cache.take(self)
        return x + self.avg_shortcut(start if before is None else torch.cat([before, start], dim=2))


class UpBlock(nn.Module):
    """Residual blocks, then an upsampler; in the Wan 2.2 form beside a parameter-free unfolding shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, up: bool, temporal: bool, residual: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (blocks + 1)
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.upsampler: Upsample | None = None
        self.upsamplers: nn.ModuleList | None = None
        self.avg_shortcut: UnfoldShortcut | None = None
        if up and residual:
            self.upsampler = Upsample(out_channels, out_channels, temporal=temporal)
            self.avg_shortcut = UnfoldShortcut(in_channels, out_channels, factor_t=2 if temporal else 1)
        elif up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels, out_channels // 2, temporal=temporal)])

    @property
    def _blocks(self) -> list[ResidualBlock]:
        return cast("list[ResidualBlock]", list(self.resnets))

    def forward(self, x: Tensor, cache: CausalCache, then: ChannelRmsNorm | None = None) -> Tensor:
        """``then``: of a block that nothing is doubled in, see :func:`in_turn`."""
        start = x
        x = in_turn(self._blocks, x, cache, then)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, cache)
        if self.upsampler is not None and self.avg_shortcut is not None:
            x = self.avg_shortcut(self.upsampler(x, cache), start, first=cache.first)
        return x


class Encoder(nn.Module):
    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, dims[0], (3, 3, 3))
        self.down_blocks = nn.ModuleList()
        scale = 1.0
        for i, (a, b) in enumerate(pairwise(dims)):
            down = i < len(config.dim_mult) - 1
            temporal = down and config.temperal_downsample[i]
            if config.is_residual:
                self.down_blocks.append(ResidualDownBlock(a, b, config.num_res_blocks, down=down, temporal=temporal))
                continue
            for _ in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(a, b))
                if scale in config.attn_scales:
                    self.down_blocks.append(FrameAttention(b))
                a = b
            if down:
                self.down_blocks.append(Downsample(b, temporal=temporal))
                scale /= 2.0
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelRmsNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], 2 * config.z_dim, (3, 3, 3))

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        return joined([y for part in cache.pieces(x) for y in self._descend(self.conv_in(part, cache), 0, cache)])

    def _descend(self, x: Tensor, level: int, cache: CausalCache) -> Iterator[Tensor]:
        """What comes out of the blocks from ``level`` on, piece by piece."""
        if level == len(self.down_blocks):
            x = self.mid_block(x, cache)
            yield self.conv_out(x, cache, norm=self.norm_out)
            return
        block = self.down_blocks[level]
        x = block(x) if isinstance(block, FrameAttention) else block(x, cache)
        for part in cache.pieces(x):
            yield from self._descend(part, level + 1, cache)


class Decoder(nn.Module):
    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        mult = config.dim_mult[::-1]
        dims = [base * m for m in (mult[0], *mult)]
        temporal = config.temperal_downsample[::-1]
        self.conv_in = CausalConv3d(config.z_dim, dims[0], (3, 3, 3))
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(dims)):
            up = i < len(mult) - 1
            if i > 0 and not config.is_residual:
                a //= 2  # the plain upsampler has halved the channels already
            self.up_blocks.append(
                UpBlock(
                    a,
                    b,
                    config.num_res_blocks,
                    up=up,
                    temporal=up and temporal[i],
                    residual=config.is_residual,
                )
            )
        self.norm_out = ChannelRmsNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], config.out_channels, (3, 3, 3))

    def forward(self, z: Tensor, cache: CausalCache) -> Tensor:
        return joined(list(self._ascend(self.mid_block(self.conv_in(z, cache), cache), 0, cache)))

    def _ascend(self, x: Tensor, level: int, cache: CausalCache) -> Iterator[Tensor]:
        """What comes out of the blocks from ``level`` on, piece by piece; of one tile where that is asked for.

        Where kernels run, the last block has normed it for the last convolution.
        """
        if level == len(self.up_blocks):
            x = self.conv_out(x, cache, norm=None if vae_ops.by_kernels(x) else self.norm_out)
            yield x if cache.tile is None else cache.tile.cut(x, level)
            return
        if cache.tile is not None:
            x = vae_ops.channels_last(cache.tile.cut(x, level))
        for part in vae_ops.pieces(x, cache.piece) if vae_ops.by_kernels(x) else cache.pieces(x):
            then = self.norm_out if level == len(self.up_blocks) - 1 else None
            yield from self._ascend(self.up_blocks[level](part, cache, then), level + 1, cache)


class WanVae(nn.Module):
    """Encoder and decoder of a Wan checkpoint.

    Latents leave :meth:`encode` and enter :meth:`decode` in the VAE's own scale; :meth:`normalize` maps them to the
    zero mean, unit variance scale in which the transformer works.
    """

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    def lay_innermost(self) -> None:
        """Put the weights of convolutions in the order in which the kernels of a GPU read them, channels innermost."""
        for parameter in self.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    def normalize(self, latents: Tensor) -> Tensor:
        """``(latents - mean) / std`` per channel."""
        return (latents - self._channels(latents, self.config.latents_mean)) / self._channels(
            latents, self.config.latents_std
        )

    def denormalize(self, latents: Tensor) -> Tensor:
        """``latents * std + mean`` per channel: the inverse of :meth:`normalize`."""
        return latents * self._channels(latents, self.config.latents_std) + self._channels(
            latents, self.config.latents_mean
        )

    def _channels(self, latents: Tensor, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)

    def _latent_frames(self, x: Tensor, cache: CausalCache, count: int | None) -> tuple[Tensor, ...]:
        """What passes the network together: a clip's first frame, then ``count`` at a time; ``None``: a whole chunk."""
        if count is None:
            return (x,)
        alone = 1 if cache.first else 0
        return (*vae_ops.pieces(x[:, :, :alone], 1), *vae_ops.pieces(x[:, :, alone:], count))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (clamped to [-30, 20]) of the latents of a whole clip [B, 3, F, H, W]."""
        return self.encode_chunk(pixels, CausalCache(keep=False))

    def encode_chunk(self, pixels: Tensor, cache: CausalCache) -> tuple[Tensor, Tensor]:
        """The next frames of a clip: 1 + scale_t * k frames in the first chunk, scale_t * k in later ones."""
        cache.alone = cache.first and not cache.keep and pixels.shape[2] == 1
        size = self.config.patch_size or 1
        count = self.config.scale_factor_temporal if vae_ops.goes_by_frames(pixels) else None
        found = []
        for part in self._latent_frames(pixels, cache, count):
            found.append(self.quant_conv(self.encoder(fold_patches(part, size), cache), cache))
            cache.first = False
        moments = joined(found)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W], clamped to [-1, 1], of a whole clip of latents [B, z_dim, f, h, w]."""
        return self.decode_whole(latents).clamp(-1.0, 1.0)

    def decode_whole(self, latents: Tensor) -> Tensor:
        """:meth:`decode` without the clamp, whose zero gradient outside [-1, 1] training cannot use."""
        return self.decode_chunk(latents, CausalCache(keep=False))

    def decode_chunk(self, latents: Tensor, cache: CausalCache) -> Tensor:
        """The next latent frames of a clip as pixels, not clamped; any split of a clip gives the same frames."""
        cache.alone = cache.first and not cache.keep and latents.shape[2] == 1
        count = 1 if vae_ops.goes_by_frames(latents) else None
        if vae_ops.by_kernels(latents):  # the first frame alone, then pieces: each looks back on the one before
            count, cache.keep = latents.shape[2], not cache.alone
        parts = []
        for part in self._latent_frames(latents, cache, count):
            parts.append(self.decoder(self.post_quant_conv(part, cache), cache))
            cache.first = False
        return unfold_patches(joined(parts), self.config.patch_size or 1)


def fold_patches(x: Tensor, size: int) -> Tensor:
    """[B, C, F, H, W] -> [B, C * size^2, F, H / size, W / size]; channel order (c, column, row), as in Wan 2.2."""
    if size == 1:
        return x
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f, h // size, size, w // size, size).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(b, c * size * size, f, h // size, w // size)


def unfold_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of :func:`fold_patches`."""
    if size == 1:
        return x
    b, c, f, h, w = x.shape
    x = x.reshape(b, c // (size * size), size, size, f, h, w).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(b, c // (size * size), f, h * size, w * size)

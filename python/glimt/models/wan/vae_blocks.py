"""Building blocks of the Wan causal video autoencoders (2.1 and 2.2).

Every block is causal in time: frame ``t`` of an output depends on frames ``<= t`` of the input only. A clip can
therefore be pushed through in chunks, each block leaving in a :class:`CausalCache` the few frames that the next chunk
needs. A whole clip is one chunk; there is no second code path for it. ``vae_cache`` says how frames pass on a CPU.

Parameter names are those of Diffusers' ``AutoencoderKLWan`` (source: Wan 2.1 technical report, section 4.1, and the
reference implementations ``wan/modules/vae2_1.py`` and ``vae2_2.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glimt_kernels as kernels
from glimt.models.linear import linear
from glimt.models.wan import vae_ops
from glimt.models.wan.vae_cache import CausalCache
from glimt_kernels.causal_conv3d.call import interleaved


class CausalConv3d(nn.Conv3d):
    """3-D convolution padded in the past only: ``kernel_t - 1`` earlier frames, zeros at the start of a clip.

    ``x``: [B, C_in, F, H, W] -> [B, C_out, F, H', W'] (stride 1 in time).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        space = (kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, padding=(0, *space))
        self.history = kernel[0] - 1
        self.around = (0, *space)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        cache: CausalCache,
        *,
        norm: ChannelRmsNorm | None = None,
        plus: Tensor | None = None,
        interleave: bool = False,
    ) -> Tensor:
        """The convolution of ``x``, or of ``silu(norm(x))``, and ``plus`` added to it.

        With ``interleave`` (and no ``plus``) the halves of a frame's channels become two frames.
        """
        if vae_ops.goes_by_frames(x):
            y = self._step(x, cache, norm, plus)
            return interleaved(y) if interleave else y
        x = x if norm is None else norm(x, silu=True)
        past = self._remember(x, cache)
        return vae_ops.causal_conv3d(x, self.weight, self.bias, past, plus, interleave=interleave)

    def normed(
        self, x: Tensor, cache: CausalCache, norm: ChannelRmsNorm, *, plus: Tensor | None = None, keep: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """``silu(norm(y))`` of the convolution ``y``, and ``y`` if it is to be kept: one op where kernels run."""
        past, gamma = self._remember(x, cache), norm.gamma.flatten()
        return kernels.causal_conv3d_norm(x, self.weight, self.bias, past, plus, gamma, keep=keep)

    def _remember(self, x: Tensor, cache: CausalCache) -> Tensor | None:
        """Keep the last frames of ``x`` for the next chunk; those that were kept for this one."""
        past = cache.get(self)
        if self.history:
            cache.put(self, x, self.history)
        return past

    def _step(self, x: Tensor, cache: CausalCache, norm: ChannelRmsNorm | None, plus: Tensor | None) -> Tensor:
        """The next frames of the convolution, its input written behind the frames before it."""
        count, cuts, first = x.shape[2], vae_ops.cuts_kernels(x), False
        if not self.history or (cuts and cache.alone):
            seen, first = x if norm is None else norm(x, silu=True), bool(self.history)
        else:
            window = cache.window(self, x, self.history)
            room = window.room(x)
            if norm is None:
                room.copy_(x)
            else:
                norm(x, silu=True, out=room)
            first = cuts and window.count == 1
            seen = window.last(1 if first else self.history + count)
        if first:  # zeros came before: only the last part of the kernel has something to add
            weight = self.weight[:, :, -1:]
        else:
            weight = cache.prepared(self, lambda: vae_ops.packed(self.weight, seen, self.around))
        return vae_ops.conv3d(seen, weight, self.bias, padding=self.around, plus=plus)


class ChannelRmsNorm(nn.Module):
    """``gamma * sqrt(C) * x / max(||x||_2, 1e-12)`` over the channel axis 1, then SiLU if asked; norm in float32."""

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * spatial_dims))

    def forward(self, x: Tensor, *, silu: bool = False, out: Tensor | None = None) -> Tensor:
        """In ``out`` where it is given, of the shape of ``x``."""
        return vae_ops.norm_silu(x, self.gamma, silu=silu, out=out)


class ResidualBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, causal 3x3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelRmsNorm(in_channels, 3)
        self.conv1 = CausalConv3d(in_channels, out_channels, (3, 3, 3))
        self.norm2 = ChannelRmsNorm(out_channels, 3)
        self.conv2 = CausalConv3d(out_channels, out_channels, (3, 3, 3))
        same = in_channels == out_channels
        self.conv_shortcut = None if same else CausalConv3d(in_channels, out_channels, (1, 1, 1))

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        if vae_ops.by_kernels(x):
            return in_turn([self], x, cache)
        h = self.conv1(x, cache, norm=self.norm1)
        return self.conv2(h, cache, norm=self.norm2, plus=self._shortcut(x, cache))

    def normed(
        self, x: Tensor, normed: Tensor, cache: CausalCache, then: ChannelRmsNorm | None, *, keep: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of ``x`` and ``normed = silu(norm1(x))``: ``silu(then(y))`` of what comes out, and ``y`` if it is kept."""
        h, _ = self.conv1.normed(normed, cache, self.norm2, keep=False)
        plus = self._shortcut(x, cache)
        if then is None:
            return None, self.conv2(h, cache, plus=plus)
        return self.conv2.normed(h, cache, then, plus=plus, keep=keep)

    def _shortcut(self, x: Tensor, cache: CausalCache) -> Tensor:
        return x if self.conv_shortcut is None else self.conv_shortcut(x, cache)


def in_turn(
    blocks: Sequence[ResidualBlock], x: Tensor, cache: CausalCache, then: ChannelRmsNorm | None = None
) -> Tensor:
    """``x`` after all blocks; with ``then`` and where kernels run, ``silu(then(x))`` in its place.

    There each convolution makes, in its epilogue, what the next one reads: only the first norm is a pass of its own.
    """
    if not vae_ops.by_kernels(x):
        for block in blocks:
            x = block(x, cache)
        return x
    normed: Tensor | None = blocks[0].norm1(x, silu=True)
    y: Tensor | None = x
    for block, norm in zip(blocks, [*(after.norm1 for after in blocks[1:]), then], strict=True):
        assert y is not None and normed is not None
        normed, y = block.normed(y, normed, cache, norm, keep=block is not blocks[-1])
    out = y if then is None else normed
    assert out is not None
    return out


class FrameAttention(nn.Module):
    """Single-head self-attention within each frame, no mixing across time: [B, C, F, H, W] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRmsNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b * f, h * w, c)
        qkv = linear(pixels, self.to_qkv.weight.flatten(1), self.to_qkv.bias)[:, None]
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        rows = x.permute(0, 2, 3, 4, 1).reshape(b * f, h * w, c)
        out = linear(mixed, self.proj.weight.flatten(1), self.proj.bias, residual=rows)
        return out.view(b, f, h, w, c).permute(0, 4, 1, 2, 3)


class MidBlock(nn.Module):
    """Residual block, attention within frames, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        x = self.resnets[0](x, cache)
        return self.resnets[1](self.attentions[0](x), cache)


class Downsample(nn.Module):
    """Halve H and W (3x3 convolution, stride 2); with ``temporal``, also halve every frame but a clip's first."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Where frames come one by one, every second gives none: [B, C, 0, H', W']."""
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        x = vae_ops.downsample_conv(x, conv.weight, conv.bias)
        if self.time_conv is None or cache.alone:
            return x
        if vae_ops.goes_by_frames(x):
            return self._step(x, cache, self.time_conv)
        last = cache.get(self)
        cache.put(self, x, 1)
        if last is not None:
            return self._halve(torch.cat([last, x], dim=2), self.time_conv)
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self._halve(x, self.time_conv)], dim=2)

    def _step(self, x: Tensor, cache: CausalCache, conv: nn.Conv3d) -> Tensor:
        count, window = x.shape[2], cache.window(self, x, 2)
        window.room(x).copy_(x)
        seen = window.last(count + 1 + count % 2)
        if window.count == 1:
            return x
        if window.count % 2 == 0:  # a frame alone, which waits for the one that it is merged with
            return x[:, :, :0]
        return self._halve(seen, conv)

    def _halve(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        return vae_ops.conv3d(x, conv.weight, conv.bias, stride=(2, 1, 1))


class Upsample(nn.Module):
    """Double H and W (nearest, 3x3 convolution); with ``temporal``, also double every frame but a clip's first."""

    def __init__(self, channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.time_conv = CausalConv3d(channels, channels * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        if self.time_conv is not None:
            # The first frame of a clip is not doubled, and the time convolution never sees it.
            alone, rest = (x[:, :, :1], x[:, :, 1:]) if cache.first else (x[:, :, :0], x)
            if rest.shape[2]:
                doubled = self.time_conv(rest, cache, interleave=True)
                x = torch.cat([alone, doubled], dim=2) if cache.first else doubled
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight
        folded = lambda: cache.prepared(self, lambda: kernels.fold_upsample(weight))  # noqa: E731
        return vae_ops.upsample_conv(x, weight, conv.bias, folded)


class FoldShortcut(nn.Module):
    """Parameter-free downsampling shortcut: space (and time) folded into channels, then groups of them averaged."""

    def __init__(self, in_channels: int, out_channels: int, *, factor_t: int, factor_s: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.factor_t, self.factor_s = factor_t, factor_s

    def forward(self, x: Tensor) -> Tensor:
        t, s = self.factor_t, self.factor_s
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % t, 0))
        b, c, f, h, w = x.shape
        x = x.reshape(b, c, f // t, t, h // s, s, w // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return x.reshape(b, self.out_channels, -1, f // t, h // s, w // s).mean(dim=2)


class UnfoldShortcut(nn.Module):
    """Parameter-free upsampling shortcut: channels repeated, then unfolded into space (and time)."""

    def __init__(self, in_channels: int, out_channels: int, *, factor_t: int) -> None:
        super().__init__()
        if out_channels * factor_t * 4 % in_channels:
            raise ValueError(f"{in_channels} channels do not unfold into {out_channels} x {factor_t} x 2 x 2")
        self.factor_t = factor_t

    def forward(self, y: Tensor, x: Tensor, *, first: bool) -> Tensor:
        """``y`` (which may be overwritten) plus ``x`` unfolded; ``first``: ``x`` begins a clip."""
        return vae_ops.add_unfolded(y, x, self.factor_t, first=first)

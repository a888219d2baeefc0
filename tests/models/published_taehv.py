"""The published definition of TAEHV, stated again in PyTorch's plainest words: what the engine's own is held to.

Lists of layers with the published numbers, run frame by frame or all frames at once; random weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Form:
    """What a published file of one name is made of."""

    latents: int
    patch: int
    grows: tuple[int, int, int]
    pools: tuple[int, int, int]
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    wide: bool = False
    encoder: int = 64

    def small(self) -> Form:
        """The same with few channels: for tests of everything but the real sizes."""
        wide = (128, 64, 64, 8) if self.wide else (16, 12, 8, 6)
        return Form(self.latents, self.patch, self.grows, self.pools, wide, self.wide, 10)


FORMS = {
    "taehv": Form(16, 1, (1, 2, 2), (2, 2, 1)),
    "taew2_1": Form(16, 1, (1, 2, 2), (2, 2, 1)),
    "taew2_2": Form(48, 2, (1, 2, 2), (2, 2, 1)),
    "taehv1_5": Form(32, 2, (1, 2, 2), (2, 2, 1)),
    "taeltx_2": Form(128, 4, (2, 2, 2), (2, 2, 2)),
    "taeltx2_3_wide": Form(128, 4, (2, 2, 2), (2, 2, 2), (1024, 512, 256, 64), wide=True),
}


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """[N, C, H, W] frames of one clip; ``past`` are the frames one step before."""

    def __init__(self, n: int, wide: bool) -> None:
        super().__init__()
        groups = max(1, n // 64)
        if wide:
            layers = [
                nn.Conv2d(2 * n, n, 1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1, groups=groups), nn.ReLU(),
                nn.Conv2d(n, n, 1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1, groups=groups),
            ]  # fmt: skip
        else:
            layers = [
                nn.Conv2d(2 * n, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1), nn.ReLU(),
                nn.Conv2d(n, n, 3, padding=1),
            ]  # fmt: skip
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return torch.relu(self.conv(torch.cat([x, past], 1)) + x)


class Pool(nn.Module):
    def __init__(self, n: int, stride: int) -> None:
        super().__init__()
        self.stride, self.conv = stride, nn.Conv2d(n * stride, n, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class Grow(nn.Module):
    def __init__(self, n: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, n * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class Published(nn.Module):
    """Clips without a batch: latents [f, C, h, w] <-> frames [F, 3, H, W] in [0, 1]."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        n, colours = form.widths, 3 * form.patch**2
        layers: list[nn.Module] = [Clamp(), nn.Conv2d(form.latents, n[0], 3, padding=1), nn.ReLU()]
        for i, grow in enumerate(form.grows):
            layers += [Block(n[i], form.wide) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(n[i], grow)]
            layers += [nn.Conv2d(n[i], n[i + 1], 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(n[3], colours, 3, padding=1))
        e = form.encoder
        layers = [nn.Conv2d(colours, e, 3, padding=1), nn.ReLU()]
        for pool in form.pools:
            layers += [Pool(e, pool), nn.Conv2d(e, e, 3, padding=1, stride=2, bias=False)]
            layers += [Block(e, False) for _ in range(3)]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(e, form.latents, 3, padding=1))

    def decode(self, latents: Tensor) -> Tensor:
        frames = self.decoder(latents)
        frames = F.pixel_shuffle(frames, self.form.patch).clamp(0, 1)
        trim = self.form.grows[0] * self.form.grows[1] * self.form.grows[2] - 1
        return frames[trim:]

    def encode(self, frames: Tensor) -> Tensor:
        x, factor = F.pixel_unshuffle(frames, self.form.patch), 1
        for pool in self.form.pools:
            factor *= pool
        short = -len(x) % factor
        return self.encoder(torch.cat([x, *[x[-1:]] * short]))


def published(form: Form, seed: int = 0) -> Published:
    """With random weights that keep activations near one and pixels mostly inside their range."""
    generator = torch.Generator().manual_seed(seed)
    model = Published(form)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 if parameter.ndim == 1 else noise * (2 / parameter[0].numel()) ** 0.5)
        for module in model.modules():
            if isinstance(module, Block):  # many residual blocks in a row must not blow up
                module.conv[-1].weight.mul_(0.3)
        model.decoder[-1].bias.zero_()
        model.decoder[-1].weight.mul_(
            0.2 / model.decoder(torch.randn(2, form.latents, 2, 2, generator=generator)).std()
        )
        model.decoder[-1].bias.fill_(0.5)
    return model.eval()

"""A linear map from latents to a small picture: what previews are made by where there is no tiny decoder.

    rgb[:, t, s y + i, s x + j] = b_ij + sum over dy, dx in -1 .. 1 of W_ij,dy,dx z[:, t, y + dy, x + dx]

``i, j`` in ``0 .. s - 1``; beyond its edges a frame goes on as at them. One picture for each latent frame, the last of
those that it stands for. ``W`` and ``b`` are the least-squares fit to what the model's own autoencoder decodes: over
single latents alone, without their neighbours, previews of the bundled model were at 0.84 of correlation with the clip
instead of 0.88, over neighbours in time too at no more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-2  # times the mean square of a latent: keeps channels that are always alike from being told apart by noise
REACH = 3  # latents a side that a pixel is made of


def fit(latents: Tensor, pixels: Tensor, side: int) -> Tensor:
    """The map ``[3 side^2, 9 C + 1]`` (last column: ``b``), float32.

    Args:
        latents: [N, C, f, h, w], normalized.
        pixels: [N, 3, 1 + t (f - 1), H, W], those that the latents stand for.
        side: pixels a side for each latent.
    """
    f, h, w = latents.shape[2:]
    step = (pixels.shape[2] - 1) // (f - 1) if f > 1 else 1
    frames = pixels[:, :, ::step].transpose(1, 2).flatten(0, 1).double()
    small = F.adaptive_avg_pool2d(frames, (side * h, side * w))
    targets = F.unfold(small, side, stride=side).transpose(1, 2).flatten(0, 1)
    rows = F.unfold(_framed(latents.double()), REACH).transpose(1, 2).flatten(0, 1)
    penalty = RIDGE * rows.square().mean() * len(rows) * torch.ones_like(rows[0])
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    penalty = torch.cat([penalty, torch.zeros_like(penalty[:1])])  # the constant is not held down
    return torch.linalg.solve(rows.T @ rows + torch.diag(penalty), rows.T @ targets).T.float().contiguous()


def apply(weight: Tensor, latents: Tensor) -> Tensor:
    """Pixels [B, 3, f, s h, s w], clamped to [-1, 1], of normalized latents [B, C, f, h, w]."""
    b, c, f, h, w = latents.shape
    kernel = weight[:, :-1].view(-1, c, REACH, REACH)
    small = F.conv2d(_framed(latents), kernel, weight[:, -1])
    side = round((weight.shape[0] // 3) ** 0.5)
    pictures = F.pixel_shuffle(small, side).view(b, f, 3, side * h, side * w)
    return pictures.transpose(1, 2).clamp(-1.0, 1.0)


def flops(channels: int, side: int, positions: int) -> int:
    """Of :func:`apply` to so many latents of so many channels."""
    return 2 * REACH**2 * channels * 3 * side**2 * positions


def _framed(latents: Tensor) -> Tensor:
    """[B, C, f, h, w] -> [B f, C, h + 2, w + 2]."""
    edge = REACH // 2
    return F.pad(latents.transpose(1, 2).flatten(0, 1), (edge, edge, edge, edge), mode="replicate")

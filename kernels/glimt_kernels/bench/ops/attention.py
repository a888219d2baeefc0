"""attention: of all video tokens over each other, and over the text with its padding folded into a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt_kernels.bench.shapes import Shape
from glimt_kernels.bench.workload import Args, Workload, sample


def eager(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """PyTorch's own attention with its own choice of a kernel, as Diffusers calls it."""
    mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).contiguous()


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output [B, N, heads, head_dim] and log-sum-exp [B, heads, N] in float64, head by head to save memory."""
    outputs, lses = [], []
    for head in range(q.shape[2]):
        mine, keys, values = (x[:, :, head].double() for x in (q, k, v))
        logits = mine @ keys.transpose(1, 2) * scale
        if bias is not None:
            logits = logits + bias[:, None, :].double()
        lses.append(logits.logsumexp(-1))
        outputs.append(torch.softmax(logits, -1) @ values)
    return torch.stack(outputs, 2), torch.stack(lses, 1)


def draw(tokens: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(1, tokens, shape.heads, shape.head_dim, device=device).to(dtype)


def workload(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    return _over(name, shape, shape.tokens, dtype, device, None)


def cross(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Workload:
    """A third of the text is padding, which is one key whose logit is raised by the log of its number."""
    bias = torch.zeros(1, shape.text, device=device)
    bias[:, 2 * shape.text // 3 :] = -torch.inf
    bias[:, 2 * shape.text // 3] = float(torch.tensor(max(shape.text // 3, 1)).log())
    return _over(name, shape, shape.text, dtype, device, bias)


def _over(
    name: str, shape: Shape, keys: int, dtype: torch.dtype, device: torch.device, bias: Tensor | None
) -> Workload:
    q, k, v = (draw(n, shape, dtype, device) for n in (shape.tokens, keys, keys))
    return of(name, (q, k, v, shape.head_dim**-0.5, bias))


def of(name: str, args: Args) -> Workload:
    q, k, v, scale, bias = args
    rows = sample(q.shape[1], q.device)
    return Workload(
        op="attention",
        shape=name,
        args=args,
        eager=eager,
        flops=4 * q.numel() * k.shape[1],
        num_bytes=2 * q.nbytes + k.nbytes + v.nbytes,
        exact=lambda: [exact(q[:, rows], k, v, scale, bias)[0]],
        part=lambda result: [result[0][:, rows]],
        kind="matrix",
    )

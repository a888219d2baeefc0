"""One forward of a Wan transformer with random weights: glimt beside Diffusers, eager and compiled.

All have the same weights, drawn from one seed. glimt runs as its engine runs it: text, time and rotary tables are
prepared once per request. A small model of the same width, against float32, says first whether a provider is right.
One after another, each with its row at once: five forwards of 14B, two of them to warm up, are 8.4 PFLOP.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report.rows import Row, Rows
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.rope import rope_tables
from glimt.models.wan.transformer import WanTransformer, fold_padding, keeps_fp32
from glimt_kernels import references_only
from glimt_kernels.bench.lost import DeviceLostError, brief, raise_if_lost
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.timing import Clock, Rates
from glimt_kernels.bench.workload import error

PART = "forward"
OURS, PEERS = ("glimt", "glimt 8-bit"), ("diffusers", "diffusers compile cudnn")
PROVIDERS = (*OURS, *PEERS)
WORSE_THAN_PYTORCH, SLACK = 2.0, 1e-5  # the slack is the parity that tests hold float32 to
LOSSY_ERROR = 0.1  # of eight bits, relative L2: several times what two random layers cost
LIMIT_S = 5.0  # of timing, after which no further forward begins; three there are
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A model at work: its config, and latents [1, C, f, h, w] with so many text tokens, a tenth of them a prompt."""

    config: WanTransformerConfig
    latents: tuple[int, int, int]
    text: int = 512

    @property
    def tokens(self) -> int:
        return torch.Size(n // p for n, p in zip(self.latents, self.config.patch_size, strict=True)).numel()

    @property
    def flops(self) -> float:
        """Of the matrix products of its blocks."""
        n, d, text = self.tokens, self.config.width, self.text
        attention = 4 * n * n * d + 4 * n * text * d
        linear = 12 * n * d * d + 4 * text * d * d + 4 * n * d * self.config.ffn_dim
        return float(self.config.num_layers * (attention + linear))


_480P = (21, 60, 104)
CASES: Mapping[str, Case] = {
    "wan-1.3b-480p": Case(WanTransformerConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30), _480P),
    "wan-14b-480p": Case(WanTransformerConfig(), _480P),
}
_TINY = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=16, ffn_dim=48, num_layers=2, text_dim=24, freq_dim=32
)
TINY: Mapping[str, Case] = {"tiny": Case(_TINY, (2, 6, 8), 32)}


def missing(rows: Rows, cases: Mapping[str, Case]) -> list[tuple[str, str]]:
    """(case, provider); compiling takes longest and comes last."""
    stages = (PROVIDERS[:-1], PROVIDERS[-1:])
    asked = [(name, provider) for stage in stages for name in cases for provider in stage]
    return [(name, provider) for name, provider in asked if not rows.where(PART, shape=name, provider=provider)]


def compare(
    rows: Rows, clock: Clock, roof: Rates, dtype: str, cases: Mapping[str, Case], repeats: int
) -> Iterator[str]:
    """Add the row of each case and provider that is missing; a line of progress for each.

    Raises:
        DeviceLostError: after the row that says of whom.
    """
    for name, provider in missing(rows, cases):
        about = {"op": "forward", "shape": name, "dtype": dtype, "on_gpu": clock.device.type == "cuda"}
        rows.trying(PART, **about, provider=provider)
        try:
            row = _measure(cases[name], provider, clock, roof, DTYPES[dtype], repeats)
        except torch.OutOfMemoryError as short:
            row = {"absent": f"out of memory: {short}".splitlines()[0][:200], "wrong": False}
        except Exception as failed:  # noqa: BLE001 (whoever breaks is a row, not the end of the report)
            row = {"refused": brief(failed), "wrong": provider in OURS}
            try:
                raise_if_lost(provider, failed)
            except DeviceLostError as lost:
                rows.add(PART, [{**about, **lost.row, **row}])
                raise
        rows.add(PART, [{**about, "provider": provider, **row}])
        if clock.device.type == "cuda":
            torch.cuda.empty_cache()
        yield f"forward of {name}: {provider} {_said(row)}"


def _said(row: Row) -> str:
    return f"{row['median_ms']:.1f} ms" if "median_ms" in row else str(row.get("absent") or row["refused"])


@torch.inference_mode()
def _measure(case: Case, provider: str, clock: Clock, roof: Rates, dtype: torch.dtype, repeats: int) -> Row:
    small = replace(case, config=replace(case.config, num_layers=2), latents=_small(case))
    row = judge(small, provider, dtype, clock.device)
    if {"absent", "refused"} & set(row):
        return row
    run = make(provider, case, state(case.config, dtype, clock.device), dtype, clock.device)
    timing = clock.compare({provider: run}, repeats, LIMIT_S)[provider]
    tflops = case.flops / timing.median_ms / 1e9
    return row | {
        "median_ms": timing.median_ms,
        "p20_ms": timing.percentile_ms(20),
        "p80_ms": timing.percentile_ms(80),
        "calls": len(timing.values_ms),
        "peak_bytes": timing.peak_bytes,
        "tflops": tflops,
        "of_gemm": tflops / roof.gemm_tflops,
    }


def _small(case: Case) -> tuple[int, int, int]:
    """A few latent frames of a small picture."""
    frames, height, width = case.latents
    return min(frames, 3), min(height, 12), min(width, 16)


def judge(case: Case, provider: str, dtype: torch.dtype, device: torch.device) -> Row:
    """Its error against float32 plain PyTorch, ``refused`` where that is too large, ``absent`` why it cannot run."""
    reason = absence(provider, device)
    if reason:
        return {"absent": reason, "wrong": False}
    weights = state(case.config, dtype, device)
    with references_only():
        wide = {name: tensor.float() for name, tensor in weights.items()}
        exact = [_glimt(case, wide, torch.float32, device)()]
        honest = error([_glimt(case, weights, dtype, device)()], exact).relative_l2
    found = error([make(provider, case, weights, dtype, device)()], exact).relative_l2
    row: Row = {"honest_l2": honest, "relative_l2": found, "wrong": False}
    limit = LOSSY_ERROR if provider == "glimt 8-bit" else WORSE_THAN_PYTORCH * honest
    if not found <= max(limit, SLACK):
        row["refused"] = f"relative L2 error {found:.2e}, plain PyTorch's is {honest:.2e}"
        row["wrong"] = provider in OURS
    return row


def state(config: WanTransformerConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Random weights that keep activations near one, in the dtypes that a checkpoint is loaded in."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in WanTransformer(config).state_dict().items()}
    generator = torch.Generator(device).manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        kept = torch.float32 if keeps_fp32(name) else dtype
        noise = torch.empty(shape, dtype=kept, device=device).normal_(generator=generator)
        if "norm" in name and name.endswith("weight"):
            made[name] = 1 + 0.1 * noise
        else:
            made[name] = noise.mul_(0.1 if noise.ndim < 2 else (noise.numel() / shape[0]) ** -0.5)
    return made


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(1)
    latents = torch.randn(1, case.config.in_channels, *case.latents, generator=generator, device=device)
    text = torch.randn(1, case.text, case.config.text_dim, generator=generator, device=device)
    text[:, case.text // 10 :] = 0
    return latents.to(dtype), torch.tensor([700.0], device=device), text.to(dtype)


def absence(provider: str, device: torch.device) -> str:
    """Why ``provider`` cannot run here; "" if it can."""
    if provider in PEERS and importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed: pip install diffusers"
    if provider == "diffusers compile cudnn" and device.type != "cuda":
        return "cuDNN's attention needs a CUDA device"
    return ""


def make(provider: str, case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    """The call of one forward."""
    makers = {"glimt": _glimt, "glimt 8-bit": _glimt_8bit, "diffusers": _diffusers, PEERS[1]: _compiled}
    return makers[provider](case, weights, dtype, device)


def _glimt(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    """As the engine calls it."""
    model = _model(case, weights)
    if device.type == "cuda":
        model.fuse()
    return _forward(model, case, dtype, device)


def _glimt_8bit(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    """As the engine calls it with ``precision="int8"``."""
    model = _model(case, weights)
    model.quantize("int8")
    return _forward(model, case, dtype, device)


def _model(case: Case, weights: Mapping[str, Tensor]) -> WanTransformer:
    with torch.device("meta"):
        model = WanTransformer(case.config)
    model.load_state_dict(dict(weights), assign=True)
    return model


def _forward(model: WanTransformer, case: Case, dtype: torch.dtype, device: torch.device) -> Run:
    latents, timestep, text = _inputs(case, dtype, device)
    context = model.prepare_text(fold_padding(text))
    time = model.prepare_time(timestep).at(torch.zeros(1, 1, dtype=torch.long, device=device))
    rope = rope_tables(case.config.attention_head_dim, model.grid(latents)).to(device)
    return lambda: model(latents, time, context, rope=rope)


def _peer(case: Case, weights: Mapping[str, Tensor], device: torch.device) -> Any:
    from diffusers import WanTransformer3DModel

    config = {name: getattr(case.config, name) for name in case.config.__dataclass_fields__}
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    model.load_state_dict(dict(weights), assign=True)
    # The rotary tables are buffers that no checkpoint holds.
    rope = type(model.rope)(case.config.attention_head_dim, case.config.patch_size, case.config.rope_max_seq_len)
    model.rope = rope.to(device)
    return model.eval()


def _diffusers(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    model = _peer(case, weights, device)
    inputs = _inputs(case, dtype, device)
    return lambda: model(*inputs, return_dict=False)[0]


def _compiled(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    """Its blocks are alike, so that one is compiled and used for all."""
    model = _peer(case, weights, device)
    for block in model.blocks:
        block.compile(dynamic=False)
    inputs = _inputs(case, dtype, device)

    def run() -> Tensor:
        with _cudnn():
            return model(*inputs, return_dict=False)[0]

    return run


def _cudnn() -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # Cross-attention to few keys may be nothing for cuDNN: then PyTorch's efficient one.
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION], set_priority=True)

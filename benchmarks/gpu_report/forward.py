"""One forward of a Wan transformer with random weights: glimt beside Diffusers, eager and compiled.

All share the very same weights in memory. glimt runs as its engine runs it: text, time and rotary tables are prepared
once per request. A small model of the same width, against float32, says first whether a provider is right.
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
from glimt_kernels.bench.settings import DTYPES
from glimt_kernels.bench.timing import Clock, Rates
from glimt_kernels.bench.workload import error

PART = "forward"
PROVIDERS = ("glimt", "diffusers", "diffusers compile cudnn")
WORSE_THAN_PYTORCH, SLACK = 2.0, 1e-5  # the slack is the parity that tests hold float32 to
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


def missing(rows: Rows, cases: Mapping[str, Case]) -> list[str]:
    return [name for name in cases if not all(rows.have(PART, shape=name, provider=one) for one in PROVIDERS)]


def compare(
    rows: Rows, clock: Clock, roof: Rates, dtype: str, cases: Mapping[str, Case], repeats: int
) -> Iterator[str]:
    """Add the rows of each case that is missing; a line of progress for each."""
    for name in missing(rows, cases):
        about = {"op": "forward", "shape": name, "dtype": dtype, "on_gpu": clock.device.type == "cuda"}
        try:
            found = _measure(cases[name], clock, roof, DTYPES[dtype], repeats)
        except torch.OutOfMemoryError as short:
            reason = f"out of memory: {short}".splitlines()[0][:200]
            found = [{"provider": one, "absent": reason, "wrong": False} for one in PROVIDERS]
        rows.add(PART, [{**about, **row} for row in found])
        yield f"forward of {name}: " + ", ".join(_said(row) for row in found)


def _said(row: Row) -> str:
    time = f"{row['median_ms']:.1f} ms" if "median_ms" in row else row.get("absent") or row["refused"]
    return f"{row['provider']} {time}"


@torch.inference_mode()
def _measure(case: Case, clock: Clock, roof: Rates, dtype: torch.dtype, repeats: int) -> list[Row]:
    found = judge(replace(case, config=replace(case.config, num_layers=2), latents=_small(case)), dtype, clock.device)
    right = [name for name, row in found.items() if not {"absent", "refused"} & set(row)]
    runs, _ = providers(case, state(case.config, dtype, clock.device), dtype, clock.device, right)
    for name, timing in clock.compare(runs, repeats).items():
        tflops = case.flops / timing.median_ms / 1e9
        found[name] |= {
            "median_ms": timing.median_ms,
            "p20_ms": timing.percentile_ms(20),
            "p80_ms": timing.percentile_ms(80),
            "peak_bytes": timing.peak_bytes,
            "tflops": tflops,
            "of_gemm": tflops / roof.gemm_tflops,
        }
    return list(found.values())


def _small(case: Case) -> tuple[int, int, int]:
    """A few latent frames of a small picture."""
    frames, height, width = case.latents
    return min(frames, 3), min(height, 12), min(width, 16)


def judge(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Row]:
    """By provider: its error against float32 plain PyTorch, and ``refused`` or ``absent`` with the reason."""
    weights = state(case.config, dtype, device)
    with references_only():
        wide = {name: tensor.float() for name, tensor in weights.items()}
        exact = [_glimt(case, wide, torch.float32, device)()]
        honest = error([_glimt(case, weights, dtype, device)()], exact).relative_l2
    runs, absent = providers(case, weights, dtype, device, PROVIDERS)
    rows = {name: {"provider": name, "absent": reason, "wrong": False} for name, reason in absent.items()}
    for name, run in runs.items():
        row: Row = {"provider": name, "honest_l2": honest, "wrong": False}
        rows[name] = row
        try:
            row["relative_l2"] = error([run()], exact).relative_l2
        except Exception as failed:  # noqa: BLE001 (a peer's failure is its row, not the end of the report)
            row["refused"] = f"{type(failed).__name__}: {failed}".splitlines()[0][:200]
        else:
            if not row["relative_l2"] <= max(WORSE_THAN_PYTORCH * honest, SLACK):
                row["refused"] = f"relative L2 error {row['relative_l2']:.2e}, plain PyTorch's is {honest:.2e}"
        row["wrong"] = "refused" in row and name == "glimt"
    return {name: rows[name] for name in PROVIDERS}


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


def providers(
    case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, names: Any
) -> tuple[dict[str, Run], dict[str, str]]:
    """(calls of one forward, reasons of those that cannot be made)."""
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    if "glimt" in names:
        runs["glimt"] = _glimt(case, weights, dtype, device)
    peers = [name for name in PROVIDERS[1:] if name in names]
    if importlib.util.find_spec("diffusers") is None:
        return runs, dict.fromkeys(peers, "diffusers is not installed: pip install diffusers")
    if "diffusers" in peers:
        runs["diffusers"] = _diffusers(case, weights, dtype, device)
    if "diffusers compile cudnn" in peers:
        if device.type == "cuda":
            runs["diffusers compile cudnn"] = _compiled(case, weights, dtype, device)
        else:
            absent["diffusers compile cudnn"] = "cuDNN's attention needs a CUDA device"
    return runs, absent


def _glimt(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Run:
    """As the engine calls it."""
    with torch.device("meta"):
        model = WanTransformer(case.config)
    model.load_state_dict(dict(weights), assign=True)
    if device.type == "cuda":
        model.fuse()
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

"""What one forward of the transformer takes at least: its arithmetic, its bytes, and the GPU's peak rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glimt.profile import Traffic


@dataclass(frozen=True)
class Peak:
    """What a GPU can do at most, by its maker: dense, float32 accumulation.

    Attributes:
        half_tflops: of float16 and bfloat16 on matrix units.
        single_tflops: of float32.
        gbps: to and from memory.
        source: the maker's document.
    """

    half_tflops: float
    single_tflops: float
    gbps: float
    source: str


# By the name that the driver gives. Published figures, without sparsity; nothing here was measured.
PEAKS: Mapping[str, Peak] = {
    "NVIDIA H200": Peak(989.4, 66.9, 4800, "NVIDIA H200 datasheet"),
    "NVIDIA H100 80GB HBM3": Peak(989.4, 66.9, 3350, "NVIDIA H100 datasheet, SXM"),
    "NVIDIA H100 PCIe": Peak(756.5, 51.2, 2000, "NVIDIA H100 datasheet, PCIe"),
    "NVIDIA A100-SXM4-80GB": Peak(312, 19.5, 2039, "NVIDIA A100 datasheet"),
    "NVIDIA A100 80GB PCIe": Peak(312, 19.5, 1935, "NVIDIA A100 datasheet"),
    "NVIDIA A100-SXM4-40GB": Peak(312, 19.5, 1555, "NVIDIA A100 datasheet"),
    "NVIDIA A100-PCIE-40GB": Peak(312, 19.5, 1555, "NVIDIA A100 datasheet"),
    "NVIDIA GeForce RTX 3090": Peak(71, 35.6, 936, "NVIDIA Ampere GA102 whitepaper"),
    "NVIDIA GeForce RTX 4090": Peak(165.2, 82.6, 1008, "NVIDIA Ada whitepaper"),
    "NVIDIA GeForce RTX 5090": Peak(209.5, 104.8, 1792, "NVIDIA RTX Blackwell whitepaper"),
}


@dataclass(frozen=True)
class ForwardPlan:
    """One forward of the transformer for one prompt, with what a request computes once already there.

    Attributes:
        matrix_flops, attention_flops: of products and of attention.
        bytes: moved where every kernel reads its inputs once and writes its result once, by kind of kernel.
        floor_s: what it takes at least at the GPU's peak rates; ``None`` where none are on record.
        floor_source: whose rates, or why there are none.
    """

    matrix_flops: int
    attention_flops: int
    bytes: Traffic
    floor_s: float | None
    floor_source: str


def device_name(device: str) -> str | None:
    """The driver's name of a GPU; ``None`` for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)


def forward_plan(matrix_flops: int, attention_flops: int, moved: Traffic, gpu: str | None, dtype: str) -> ForwardPlan:
    """The floor where kernels run one after the other: products and attention at the matrix rate or that of memory,
    whichever is slower, all else at that of memory."""
    peak = PEAKS.get(gpu or "")
    if gpu is not None and dtype in ("int8", "fp8"):
        return ForwardPlan(matrix_flops, attention_flops, moved, None, f"none on record for {dtype}")
    if peak is None:
        missing = "a CPU" if gpu is None else repr(gpu)
        return ForwardPlan(matrix_flops, attention_flops, moved, None, f"none on record for {missing}")
    tflops = peak.single_tflops if dtype == "float32" else peak.half_tflops
    kinds = ((matrix_flops, moved.matrix), (attention_flops, moved.attention), (0, moved.other))
    floor_s = sum(max(flops / (tflops * 1e12), size / (peak.gbps * 1e9)) for flops, size in kinds)
    source = f"{gpu} at its peak of {tflops:g} TFLOP/s and {peak.gbps:g} GB/s ({peak.source})"
    return ForwardPlan(matrix_flops, attention_flops, moved, floor_s, source)

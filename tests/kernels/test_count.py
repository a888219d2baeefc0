"""Counting launches and bytes on meta tensors: what it counts is what a GPU would be asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glimt_kernels import ada_norm, causal_conv3d_norm, linear, rms_norm_silu
from glimt_kernels.count import Count


def test_every_operator_that_computes_is_one_launch_and_views_are_none() -> None:
    with Count() as count:
        x = torch.empty(4, 6, device="meta")
        y = x.t().reshape(6, 4)[:, :2].unsqueeze(0)
        (y + 1).relu()
    assert [call.name for call in count.calls] == ["add", "relu"]
    assert count.calls[0].num_bytes == 2 * 12 * 4


def test_bytes_are_of_elements_in_memory() -> None:
    with Count() as count:
        torch.empty(8, 16, device="meta") * torch.empty(16, device="meta").expand(8, 16)
    assert count.traffic_bytes() == (2 * 8 * 16 + 16) * 4


def test_what_is_overwritten_is_not_read() -> None:
    with Count() as count:
        torch.empty(8, device="meta").copy_(torch.empty(8, device="meta"))
        torch.empty(8, device="meta").add_(torch.empty(8, device="meta"))
    assert [call.num_bytes for call in count.calls] == [64, 96]


def test_products_attention_and_the_rest_are_told_apart() -> None:
    q = torch.empty(1, 2, 10, 8, device="meta")
    with torch.no_grad(), Count() as count:
        out = F.scaled_dot_product_attention(q, q, q)
        F.gelu(F.linear(out, torch.empty(4, 8, device="meta")))
    assert out.shape == q.shape
    assert {call.kind: call.name for call in count.calls}["attention"] == "scaled_dot_product_attention"
    assert sorted({call.kind for call in count.calls}) == ["attention", "matrix", "other"]
    assert count.traffic_bytes("attention") == 4 * q.numel() * 4


def test_an_op_of_ours_is_one_launch() -> None:
    x, row = torch.empty(1, 5, 8, device="meta"), torch.empty(1, 1, 8, device="meta")
    with torch.no_grad(), Count() as count:
        ada_norm(x, row, row, 1e-6)
    assert [(call.name, call.num_bytes) for call in count.calls] == [("glimt::ada_norm", (2 * 40 + 2 * 8) * 4)]


def test_what_is_no_kernel_on_a_gpu_counts_as_what_it_calls() -> None:
    """cuBLAS with a bias, a kernel of ours with gate and residual, and one in a dtype that no kernel takes."""
    x, weight = torch.empty(1, 6, 8, dtype=torch.bfloat16, device="meta"), torch.empty(8, device="meta")
    square, gate = x.new_empty(8, 8), x.new_empty(1, 1, 8)
    with torch.no_grad(), Count() as count:
        linear(x, square, square[0])
        linear(x, square, square[0], activation="gelu_tanh")
        linear(x, square, square[0], gate=gate, residual=x)
    assert [call.name for call in count.calls] == ["linear", "_addmm_activation", "glimt::linear"]
    assert {call.kind for call in count.calls} == {"matrix"}
    assert count.calls[-1].num_bytes == 2 * (3 * 48 + 64 + 8 + 8)
    with torch.no_grad(), Count() as count:
        rms_norm_silu(x.double(), weight)
    assert count.launches > 3 and not any(call.name.startswith("glimt") for call in count.calls)


def test_a_convolution_and_its_norm_are_one_launch_where_the_channels_fit_it() -> None:
    names = {}
    for channels in (384, 512):
        x = torch.empty(1, channels, 4, 6, 8, dtype=torch.bfloat16, device="meta")
        weight, row = x.new_empty(channels, channels, 3, 3, 3), x.new_empty(channels)
        with torch.no_grad(), Count() as count:
            causal_conv3d_norm(x, weight, row, x[:, :, :2], x, row)
        names[channels] = [(call.name, call.kind) for call in count.calls]
        if channels == 384:  # half of x before it, x, the residual and two results
            assert count.traffic_bytes() == 2 * (4 * x.numel() + x.numel() // 2 + weight.numel() + 2 * channels)
    assert names[384] == [("glimt::causal_conv3d_norm", "matrix")]
    assert names[512] == [("glimt::causal_conv3d", "matrix"), ("glimt::rms_norm_silu", "other")]


def test_inference_mode_hides_copies_and_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"), Count():
        pass


def test_the_table_is_sorted_by_bytes() -> None:
    with Count() as count:
        small, large = torch.empty(2, device="meta"), torch.empty(100, device="meta")
        small.add(1)
        large.mul(2)
    assert [row[0] for row in count.by_name()] == ["mul", "add"]

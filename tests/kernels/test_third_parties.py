"""Libraries of attention as stand-ins with their published signatures: what they are called with is what they take.

The stand-ins compute by a formula of their own; nothing here says that the real ones are right or fast.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from budget import random

from glimt_kernels import dispatch
from glimt_kernels.attention import flash_attn
from glimt_kernels.attention.call import Call
from glimt_kernels.dispatch import Case

EXACT = """
import torch

def exact(q, k, v, scale, causal):
    assert not causal and scale is not None
    weights = torch.softmax(torch.einsum("bnhd,blhd->bhnl", q, k) * scale, -1)
    return torch.einsum("bhnl,blhd->bnhd", weights, v)

"""
# Positions matter as much as names: q, k, v are given by place, all else by name.
FLASH_2 = """
def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    assert dropout_p == 0.0 and not return_attn_probs
    return exact(q, k, v, softmax_scale, causal)
"""
FLASH_3 = """
def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
                    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None,
                    deterministic=False, sm_margin=0, return_attn_probs=False):
    assert qv is None and not return_attn_probs
    return exact(q, k, v, softmax_scale, causal)
"""
FLASH_4 = """
def flash_attn_func(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False,
                    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None,
                    deterministic=False):
    assert qv is None and gather_kv_indices is None
    return exact(q, k, v, softmax_scale, causal), None
"""
SAGE = """
def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert not return_lse and not kwargs
    if tensor_layout == "HND":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = exact(q, k, v, sm_scale, is_causal)
    return out.transpose(1, 2) if tensor_layout == "HND" else out
"""
FLASHINFER = """
def single_prefill_with_kv_cache(q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None,
                                 packed_custom_mask=None, causal=False, kv_layout="NHD", pos_encoding_mode="NONE",
                                 use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
                                 rope_scale=None, rope_theta=None, backend="auto", return_lse=False):
    assert q.dim() == k.dim() == v.dim() == 3 and kv_layout == "NHD" and not return_lse
    return exact(q[None], k[None], v[None], sm_scale, causal)[0]
"""
# File -> what it holds; a folder without __init__ is a namespace, as generation 4 alone leaves it.
FILES = {
    "flash_attn": ("flash_attn/__init__.py", FLASH_2),
    "flash_attn_interface": ("flash_attn_interface.py", FLASH_3),
    "flash_attn.cute": ("flash_attn/cute/__init__.py", FLASH_4),
    "sageattention": ("sageattention/__init__.py", SAGE),
    "flashinfer": ("flashinfer/__init__.py", FLASHINFER),
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These packages and none of the others, found as installed ones are."""
    for name in names:
        file, text = FILES[name]
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(EXACT + text)
    for name in [name for name in sys.modules if name.partition(".")[0] in FILES]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    flash_attn._installed.cache_clear()


@pytest.fixture(autouse=True)
def forgotten() -> object:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in FILES]:
        del sys.modules[name]
    flash_attn._installed.cache_clear()


def on(arch: int, head_dim: int = 128) -> Case:
    return Case("cuda", torch.bfloat16, False, arch, tuple(Call(head_dim=head_dim, dtype=2)))


def candidate(impl: str) -> dispatch.Candidate:
    return next(one for one in dispatch.candidates("attention") if one.impl == impl)


@pytest.mark.parametrize(
    ("impl", "package", "arch"),
    [
        ("flash_attn", "flash_attn", 80),
        ("flash_attn", "flash_attn_interface", 90),
        ("flash_attn", "flash_attn.cute", 90),
        ("flash_attn", "flash_attn.cute", 100),
        ("flash_attn", "flash_attn", 120),
        ("sage", "sageattention", 89),
        ("flashinfer", "flashinfer", 90),
    ],
)
def test_a_library_is_called_as_it_takes_it(
    impl: str, package: str, arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, package)
    assert not dispatch.unsupported_reasons(candidate(impl), on(arch))
    monkeypatch.setattr(flash_attn, "case_of", lambda tensors: on(arch))
    q, k, v = random(2, 7, 3, 16), random(2, 5, 3, 16, seed=1), random(2, 5, 3, 16, seed=2)
    expected = candidate("reference").run(q, k, v, 0.3, None)
    torch.testing.assert_close(candidate(impl).run(q, k, v, 0.3, None), expected)
    out = torch.full_like(q, torch.nan)
    assert candidate(impl).run(q, k, v, 0.3, None, out=out) is out
    torch.testing.assert_close(out, expected)


def test_generations_and_their_head_dims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation 4 takes 256 on sm_90, 128 on sm_100 and sm_120; where 2 is there too, it takes what 4 does not."""
    install(tmp_path, monkeypatch, "flash_attn.cute")

    def reasons(arch: int, head_dim: int) -> str:
        return "; ".join(dispatch.unsupported_reasons(candidate("flash_attn"), on(arch, head_dim)))

    assert reasons(90, 256) == reasons(100, 128) == reasons(120, 96) == ""
    for arch in (100, 120):
        limit = f"on sm_{arch} flash_attn.cute takes a head_dim of at most 128; found 192"
        assert reasons(arch, 192) == limit
    assert "pip install flash-attn --no-build-isolation" in reasons(80, 64), "generation 4 has nothing for sm_80"
    assert "at most 256 in steps of 8, found 260" in reasons(100, 260)
    install(tmp_path, monkeypatch, "flash_attn", "flash_attn.cute")
    assert reasons(120, 192) == reasons(80, 256) == ""
    assert "at most 128" in reasons(100, 192)
    monkeypatch.setattr(flash_attn, "case_of", lambda tensors: on(120))
    q = random(1, 4, 1, 192)
    torch.testing.assert_close(
        candidate("flash_attn").run(q, q, q, 0.1, None), candidate("reference").run(q, q, q, 0.1, None)
    )
    assert "flash_attn.cute" not in sys.modules, "which refuses it"


def test_without_its_package_a_library_says_how_to_install_it() -> None:
    for impl, package in (
        ("sage", "sageattention"),
        ("flashinfer", "flashinfer-python"),
        ("flash_attn", "flash-attn-4"),
    ):
        reasons = "; ".join(dispatch.unsupported_reasons(candidate(impl), on(100)))
        assert f"pip install {package}" in reasons

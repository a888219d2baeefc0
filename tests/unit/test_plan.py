"""Plans: counted work is the work PyTorch counts, memory grows with the request, and the table says it all."""

from __future__ import annotations

import argparse
import json
import re
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from glimt import env, memory, profile
from glimt.cli import info
from glimt.config import EngineConfig
from glimt.errors import MemoryBudgetError, RequestError
from glimt.images import ImagePixels
from glimt.models.taehv.config import TinyConfig
from glimt.models.taehv.model import TinyAutoencoder
from glimt.models.wan.config import WanTransformerConfig, WanVaeConfig
from glimt.models.wan.transformer import WanTransformer
from glimt.models.wan.vae import WanVae
from glimt.plan import Planner
from glimt.plan.floor import PEAKS, forward_plan
from glimt.plan.previews import tiny_bytes, tiny_flops
from glimt.plan.vae import Way, plan_decode
from glimt.request import GenerateRequest
from glimt.shapes import LatentGrid, PixelGrid, TokenGrid
from glimt.weights.folder import read_folder
from glimt.weights.tiny import with_tiny
from glimt_kernels import dispatch, triton_env
from models import tiny
from models.published_taehv import FORMS, published

REQUEST = GenerateRequest("a red ball", height=32, width=48, num_frames=9, num_inference_steps=4, seed=3)
WAN_1_3B = WanTransformerConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30)
WAN_14B = WanTransformerConfig()


class MostAlive(TorchDispatchMode):
    """``most``: the most bytes of what operations made that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._tensors: set[int] = set()
        self._storages: dict[int, int] = {}  # address -> how many tensors look at it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn and id(tensor) not in self._tensors:
                self._watch(tensor)
        self.most = max(self.most, self.now)
        return out

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self._tensors.add(id(tensor))
        self.now += 0 if self._storages.get(address) else size
        self._storages[address] = self._storages.get(address, 0) + 1
        weakref.finalize(tensor, self._gone, id(tensor), address, size)

    def _gone(self, tensor: int, address: int, size: int) -> None:
        self._tensors.discard(tensor)
        self._storages[address] -= 1
        self.now -= 0 if self._storages[address] else size


def planner(variant: str = "t2v", **config: object) -> Planner:
    return Planner.of(read_folder(tiny.folder(variant)), EngineConfig.from_mapping({"device": "cpu", **config}))


@pytest.mark.parametrize(
    ("config", "grid", "tflop"),
    [
        (WAN_1_3B, TokenGrid(21, 30, 52), 283.0),
        (WAN_14B, TokenGrid(21, 30, 52), 1678.0),
        (WAN_14B, TokenGrid(21, 45, 80), 6523.0),
    ],
)
def test_forwards_of_known_models(config: WanTransformerConfig, grid: TokenGrid, tflop: float) -> None:
    found = profile.transformer_flops(config, grid, 512) + profile.context_flops(config, 512)
    assert found / 1e12 == pytest.approx(tflop, rel=1e-3)


def counted(run: object) -> int:
    """FLOPs as PyTorch's own counter sees them, attention as matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()  # type: ignore[operator]
    return int(counter.get_total_flops())


def test_transformer_work_is_what_pytorch_counts() -> None:
    config = WanTransformerConfig.from_dict(
        {k: list(v) if isinstance(v, tuple) else v for k, v in tiny.transformer_config("t2v").items()}
    )
    model, latents, text = WanTransformer(config), torch.randn(1, 4, 3, 4, 6), torch.randn(1, 7, tiny.TEXT_DIM)
    assert counted(lambda: model.prepare_text(text)) == profile.context_flops(config, 7)
    context, time_context = model.prepare_text(text), model.prepare_time(torch.tensor([3.0]))
    modulation = time_context.at(torch.zeros(1, 1, dtype=torch.long))
    found = counted(lambda: model(latents, modulation, context))
    assert found == profile.transformer_flops(config, TokenGrid(3, 2, 3), 7)


@pytest.mark.parametrize("values", [tiny.WAN21_VAE, tiny.WAN22_VAE], ids=["wan 2.1", "wan 2.2"])
def test_vae_work_is_what_pytorch_counts_or_less(values: dict[str, object]) -> None:
    """Less where exact algebra saves work, as in an upsampling folded into its convolution; never more."""
    config = WanVaeConfig.from_dict(values)
    vae, grid = WanVae(config), LatentGrid(config.z_dim, 3, 4, 6)
    clip = grid.pixels(4, config.scale_factor_spatial)
    decoded = counted(lambda: vae.decode(torch.randn(grid.shape(1))))
    encoded = counted(lambda: vae.encode(torch.randn(1, 3, clip.frames, clip.height, clip.width)))
    assert 0.4 <= decoded / profile.vae_decode_flops(config, grid) <= 1.001
    assert 0.4 <= encoded / profile.vae_encode_flops(config, clip) <= 1.001


def test_the_plan_says_what_will_happen() -> None:
    plan = planner().plan(REQUEST)
    assert plan.latents == LatentGrid(4, 3, 4, 6) and plan.tokens == TokenGrid(3, 2, 3)
    assert plan.num_steps == 4 and plan.forwards == 8 and plan.request.seeds == (3,)
    assert (plan.device, plan.dtype, plan.schedule.solver) == ("cpu", "float32", "unipc")
    assert [stage.name for stage in plan.stages] == ["text", "denoise", "decode"]
    assert all(stage.flops > 0 and stage.seconds > 0 and stage.peak_bytes > 0 for stage in plan.stages)
    assert plan.peak_bytes > sum(plan.weights_bytes.values()) > 0 and plan.fits
    said = json.loads(json.dumps(plan.to_dict()))
    assert said["num_tokens"] == 18 and len(said["sigmas"]) == 5 and said["fits"] is True
    assert said["implementations"] == {choice.op: choice.impl for choice in plan.ops}


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_the_table_is_aligned_and_complete(variant: str) -> None:
    picture = b"\x00" * 12
    image = ImagePixels(2, 2, picture) if variant not in ("t2v", "t2v-a14b") else None
    last = image if variant == "flf2v" else None
    size = {"height": 64, "width": 96} if variant == "ti2v" else {"height": 32, "width": 48}
    request = GenerateRequest("x", image=image, last_image=last, num_frames=9, num_inference_steps=4, **size)
    lines = str(planner(variant).plan(request)).splitlines()
    rows = [line for line in lines if line.split(" ")[0] in ("stage", "text", "image", "denoise", "decode", "whole")]
    assert len({len(row) for row in rows}) == 1 and len(rows) == (6 if image else 5)
    text = "\n".join(lines)
    assert all(word in text for word in (variant, "9 frames", "unipc", "seed 0", "float32 on cpu", "measured"))
    assert all(len(line) <= 200 for line in lines)


def test_a_forward_is_shown_with_its_work_and_without_a_floor_on_a_cpu() -> None:
    made = planner("i2v")
    picture = {"image": ImagePixels(2, 2, b"\x00" * 12), "height": 32, "width": 48, "num_frames": 9}
    plan = made.plan(GenerateRequest("x", num_inference_steps=4, **picture))  # type: ignore[arg-type]
    forward, said = plan.forward, plan.to_dict()["forward"]
    of = made.transformer, plan.tokens, 1 + 1, tiny.IMAGE_TOKENS  # a word and the end of it
    assert forward.matrix_flops + forward.attention_flops == profile.transformer_flops(*of)
    assert forward.bytes == profile.transformer_bytes(*of, item_bytes=4)
    assert said["bytes"]["other"] == forward.bytes.other and said["floor_s"] is None
    lines = {line.split(" ")[0]: line for line in str(plan).splitlines() if line}
    assert "TFLOP (products" in lines["forward"] and lines["floor"].endswith("none on record for a CPU")


@pytest.mark.parametrize("name", PEAKS)
def test_the_floor_of_a_gpu_is_no_less_than_either_of_its_rates_allows(name: str) -> None:
    peak, moved = PEAKS[name], profile.transformer_bytes(WAN_14B, TokenGrid(21, 30, 52), 512, item_bytes=2)
    attention = profile.attention_flops(WAN_14B, TokenGrid(21, 30, 52), 512)
    matrix = profile.transformer_flops(WAN_14B, TokenGrid(21, 30, 52), 512) - attention
    found = forward_plan(matrix, attention, moved, name, "bfloat16")
    least = (matrix + attention) / peak.half_tflops / 1e12 + moved.other / peak.gbps / 1e9
    assert found.floor_s is not None and 0.999999 * least <= found.floor_s < 1.2 * least
    assert name in found.floor_source and peak.source in found.floor_source
    slower = forward_plan(matrix, attention, moved, name, "float32").floor_s
    assert slower is not None and slower > found.floor_s


def test_a_gpu_that_is_not_on_record_has_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVIDIA L4", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D"):
        found = forward_plan(10**12, 10**12, profile.Traffic(1, 1, 1), name, "bfloat16")
        assert found.floor_s is None and found.floor_source == f"none on record for {name!r}"
    monkeypatch.setattr("glimt.plan.planner.device_name", lambda device: "NVIDIA H200")
    plan = planner().plan(REQUEST)
    assert plan.forward.floor_s is not None and f"for {plan.forwards}: NVIDIA H200 at its peak" in str(plan)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have PyTorch tell of one GPU of a chip, which nothing here runs on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**11, 10**11))
    monkeypatch.setattr(profile, "machine_rate", lambda device, dtype: profile.Rate(1e14, "thought of"))
    monkeypatch.setattr(dispatch, "_CHOSEN", {})

    def chip(arch: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: divmod(arch, 10))
        dispatch.arch_of.cache_clear()

    yield chip
    dispatch.arch_of.cache_clear()


@pytest.mark.parametrize(("arch", "attention"), [(75, "sdpa"), (80, "triton"), (90, "triton"), (120, "triton")])
def test_on_a_gpu_the_plan_and_info_name_what_the_chip_runs(
    gpu: Callable[[int], None], arch: int, attention: str
) -> None:
    gpu(arch)
    plan, inventory = planner(device="cuda").plan(REQUEST), info._implementations()
    ops = {choice.op: choice for choice in plan.ops}
    assert (plan.device, plan.dtype) == ("cuda:0", "bfloat16")
    assert ops["attention"].impl == attention and f"cuda sm_{arch} bfloat16" in ops["attention"].cases
    (key,) = (key for key in inventory if key.startswith("cuda"))
    assert key == f"cuda:0 sm_{arch} bfloat16"
    shown = {(row["op"], row["form"]): row["impl"] for row in inventory[key] if row["chosen"]}
    assert shown["attention", ""] == shown["attention", "with a bias"] == attention
    gated = "aten" if arch < 80 else "triton"
    assert (shown["linear", ""], shown["linear", "with a gated residual"]) == ("aten", gated)
    assert set(ops["linear"].impl.split(" + ")) == {"aten", gated}
    for op in ("ada_norm", "layer_norm", "rms_norm", "qk_norm_rope"):
        assert ops[op].impl == shown[op, ""] == ("reference" if arch < 80 else "triton"), op
    assert ops["frames_to_uint8"].impl == shown["frames_to_uint8", ""] != ("triton" if arch < 80 else "reference")
    assert all(ops[op].others["triton"] for op in ops if "triton" not in ops[op].impl and op != "convolution")
    older = [line for line in plan.fallbacks if f"it needs sm_80 or newer, the device is sm_{arch}" in line]
    assert bool(older) == (arch < 80)
    if arch < 80:
        with pytest.raises(RequestError, match="strict: attention: triton cannot run here: it needs sm_80"):
            planner(device="cuda", strict=True).plan(REQUEST)


@pytest.mark.parametrize(
    ("asked", "why"),
    [("triton", "which is for tests|not built for CUDA|runs on CUDA"), ("trition", "no implementation")],
)
def test_an_override_that_cannot_run_is_told_and_breaks_nothing(
    asked: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    monkeypatch.setattr(triton_env, "INTERPRETED", False)
    monkeypatch.setenv("GLIMT_IMPL_ATTENTION", asked)
    with pytest.raises(RequestError, match=f"^GLIMT_IMPL_ATTENTION={asked}: .*({why})"):
        planner().plan(REQUEST)
    assert planner(quality="exact").plan(REQUEST).implementations["linear"] == "aten", "exact runs ask for nothing"
    rows = [row for row in info._implementations()["cpu float32"] if (row["op"], row["form"]) == ("attention", "")]
    assert not any(row["chosen"] for row in rows) and all(row["reasons"] for row in rows)
    (mine,) = (row for row in rows if row["impl"] == asked)
    assert mine["reasons"][0].startswith(f"GLIMT_IMPL_ATTENTION={asked}: ")
    assert f"GLIMT_IMPL_ATTENTION={asked}" in info.run(argparse.Namespace()).text


def test_planning_is_fast() -> None:
    made = planner()
    made.plan(REQUEST)
    best = min(_seconds(lambda: made.plan(REQUEST)) for _ in range(5))
    assert best < 0.05


def _seconds(run: object) -> float:
    start = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - start


def test_two_experts_and_their_scales() -> None:
    plan = planner("t2v-a14b").plan(GenerateRequest("x", height=32, width=48, num_frames=9, num_inference_steps=10))
    experts = [step.expert for step in plan.guidance]
    assert experts == sorted(experts) and set(experts) == {0, 1}
    assert {(s.expert, s.scale) for s in plan.guidance} == {(0, 4.0), (1, 3.0)}
    assert "expert 1" in str(plan) and "transformer_2" in plan.weights_bytes


def test_more_variants_take_more_time_and_no_more_memory() -> None:
    made = planner()
    one, two = made.plan(REQUEST), made.plan(GenerateRequest(**{**REQUEST.to_dict(), "num_videos_per_prompt": 2}))
    contexts = 2 * one.stage("denoise").flops - two.stage("denoise").flops  # once, whatever the number of variants
    assert contexts == 2 * profile.context_flops(made.transformer, 4)
    assert two.stage("text").flops == one.stage("text").flops and two.peak_bytes == one.peak_bytes


def test_a_grid_beyond_the_positions_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        planner().plan(GenerateRequest("x", height=16 * 1025, width=32, num_frames=9))
    assert caught.value.fields == ("height",)


def test_few_step_solvers_refuse_what_they_cannot_do() -> None:
    assert planner().plan(GenerateRequest("x", solver="rcm")).num_steps == 4
    assert planner().plan(GenerateRequest("x", solver="dmd")).num_steps == 3
    with pytest.raises(RequestError) as caught:
        planner().plan(GenerateRequest("x", solver="dmd", num_inference_steps=50))
    assert caught.value.fields == ("num_inference_steps",)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(0, 30),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    limit=st.integers(10**6, 4 * 10**9),
)
def test_what_would_fit_does_fit(frames: int, rows: int, columns: int, limit: int) -> None:
    config, clip = WanVaeConfig(), PixelGrid(1 + 4 * frames, 16 * rows, 16 * columns)

    def peak(grid: PixelGrid) -> int:
        latents = grid.latents(16, 4, 8)
        denoise = memory.denoise_bytes(WAN_1_3B, latents, latents.tokens((1, 2, 2)), 512, 2, 4)
        return max(denoise, plan_decode(config, latents, 4, limit, way=Way.FRAMES).peak_bytes)

    for advice in memory.what_would_fit(peak, clip, 4, (16, 16), limit):
        words = advice.replace("num_frames=", "").split()
        count, size = (words[0], words[-1]) if "x" in words[-1] else (words[-1], words[0])
        width, height = (int(side) for side in size.split("x"))
        grid = PixelGrid(int(count), height, width)
        assert peak(grid) <= limit and grid.latents(16, 4, 8).tokens((1, 2, 2)).count > 0
        assert grid.frames <= clip.frames and height <= clip.height


def test_no_room_for_the_weights_says_so() -> None:
    plan = planner(memory_budget_bytes=1000).plan(REQUEST)
    assert not plan.fits and plan.would_fit == ()
    with pytest.raises(MemoryBudgetError, match="No size fits: the smallest clip needs") as caught:
        plan.require_fit()
    enough = int(re.findall(r"(\d+) MB; raise", str(caught.value))[0]) * 10**6
    least = GenerateRequest("x", height=16, width=16, num_frames=1)
    assert planner(memory_budget_bytes=enough).plan(least).fits
    assert not planner(memory_budget_bytes=enough - 10**6).plan(least).fits


def test_fewer_frames_and_a_smaller_size_together_where_neither_is_enough() -> None:
    clip = PixelGrid(81, 1024, 1536)

    def peak(grid: PixelGrid) -> int:
        return grid.frames * 10**6 + 10 * grid.height * grid.width

    (advice,) = memory.what_would_fit(peak, clip, 4, (16, 16), 10**7)
    size, frames = advice.split(" with num_frames=")
    width, height = map(int, size.split("x"))
    assert 10**6 < peak(PixelGrid(int(frames), height, width)) <= 10**7


def test_previews_count_what_makes_them_beside_the_transformer() -> None:
    file = tiny.tiny_decoder("t2v")
    folder = with_tiny(read_folder(tiny.folder("t2v")), file)
    whole = Planner.of(folder, EngineConfig(device="cpu")).plan(REQUEST)
    made = Planner.of(folder, EngineConfig(device="cpu", memory_budget_bytes=whole.peak_bytes - 1))
    requests = [
        replace(REQUEST, preview_every=every, preview=by) for every, by in ((0, "auto"), (2, "tiny"), (2, "linear"))
    ]
    plain, by_tiny, by_map = map(made.plan, requests)
    assert plain.staged and [plan.preview is None for plan in (plain, by_tiny, by_map)] == [True, False, False]
    more = by_tiny.stage("denoise").peak_bytes - plain.stage("denoise").peak_bytes
    assert more == plain.weights_bytes["tiny_decoder"] + by_tiny.preview.peak_bytes  # type: ignore[union-attr]
    assert by_map.stage("denoise").networks == plain.stage("denoise").networks
    assert by_map.stage("preview").networks == ("vae",) and by_map.stage("preview").flops > 0


@pytest.mark.parametrize("name", ["taew2_2", "taeltx_2", "taeltx2_3_wide"])
def test_tiny_work_is_what_pytorch_counts_or_less(name: str) -> None:
    """Less where a 1x1 goes into the 3x3 behind it; a glimpse doubles and grows less than the whole."""
    weights = published(FORMS[name].small()).state_dict()
    config = TinyConfig.from_shapes({key: tuple(t.shape) for key, t in weights.items()})
    model, grid = TinyAutoencoder(config), LatentGrid(config.latent_channels, 3, 2, 3)
    decoded = counted(lambda: model.decode(torch.randn(grid.shape(1))))
    glimpsed = counted(lambda: model.glimpse(torch.randn(grid.shape(1)), 1))
    # What the weights of growing and convolving cost to be multiplied is on top; it does not grow with the clip.
    folding = sum(2 * 9 * a.width**2 * a.frames * 64 for a in config.decoder.levels)
    assert tiny_flops(config, grid) <= decoded <= tiny_flops(config, grid) + folding
    small = tiny_flops(config, grid, doublings=1, grow=False)
    assert small <= glimpsed <= small + folding and glimpsed < decoded / 4


@pytest.mark.parametrize("frames", [1, 4])
def test_memory_of_the_tiny_decoder_is_predicted(frames: int) -> None:
    """Within a factor of two of the tensors alive at the worst moment, and never too little."""
    weights = published(FORMS["taew2_1"].small()).state_dict()
    config = TinyConfig.from_shapes({key: tuple(t.shape) for key, t in weights.items()})
    model, grid = TinyAutoencoder(config), LatentGrid(16, frames, 24, 24)
    latents = torch.randn(grid.shape(1))
    with torch.no_grad(), MostAlive() as alive:
        model.decode(latents)
    assert alive.most <= tiny_bytes(config, grid, frames, 4) <= 2 * alive.most


def test_contexts_of_two_experts_are_kept_together_only_where_there_is_room() -> None:
    request = GenerateRequest("x", height=32, width=48, num_frames=9, num_inference_steps=10, num_videos_per_prompt=3)
    roomy = planner("t2v-a14b").plan(request)
    tight = planner("t2v-a14b", memory_budget_bytes=roomy.peak_bytes - 1).plan(request)
    assert tight.staged and not roomy.staged
    assert tight.stage("denoise").flops > roomy.stage("denoise").flops


def test_the_budget_is_what_was_configured_or_what_is_free() -> None:
    assert memory.budget(123, "cpu") == memory.Budget(123, "configured")
    free = memory.budget(None, "cpu")
    assert free.limit_bytes > 0 and memory.budget(None, "cpu", 10**15).limit_bytes > 10**15


def test_no_free_memory_is_not_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 0)
    assert memory.budget(None, "cpu").limit_bytes == 0


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_bound_memory_and_file_pages_count_as_free(tmp_path: Path, version: int) -> None:
    root, names = (tmp_path, env._V2) if version == 2 else (tmp_path / "memory", env._V1)
    _, limit, used, droppable = names
    for folder, most, now, files in (("a/b", "max", 50, 0), ("a", "1000", 900, 300), (".", "5000", 1000, 0)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / limit).write_text(f"{most}\n")
        (root / folder / used).write_text(f"{now}\n")
        (root / folder / "memory.stat").write_text(f"anon 5\n{droppable} {files}\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n" if version == 2 else "7:cpu:/\n4:memory:/a/b\n0::/\n")
    groups = env._memory_groups(tmp_path, own)
    assert groups == [env._Group(1000, 600), env._Group(5000, 1000)]
    assert env._memory_groups(tmp_path, tmp_path / "absent") == []

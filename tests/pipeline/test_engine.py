"""The engine's promises: order, cancelling, independence of requests, variants, guards, memory, provenance."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glimt.engine import Engine
from glimt.errors import CheckpointError, MemoryBudgetError, NonFiniteError, RequestError
from glimt.models.wan.transformer import WanTransformer
from glimt.pipeline import components
from glimt.pipeline.components import Embedded, Embeddings
from glimt.pipeline.events import FrameChunk, StageEvent, StepState
from glimt.plan import EXPERTS, GenerationPlan
from glimt.report import frames_sha256
from glimt.request import GenerateRequest
from models import tiny

REQUEST = GenerateRequest(
    "a red ball", "slowly", height=32, width=48, num_frames=17, num_inference_steps=3, guidance_scale=3.0, seed=1
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny.folder("t2v"), device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def alone(engine: Engine) -> np.ndarray:
    """The frames of REQUEST, run by itself."""
    return engine.generate(REQUEST).frames


def test_events_tell_the_whole_run_in_order(engine: Engine, alone: np.ndarray) -> None:
    events = list(engine.stream(REQUEST))
    stages = [(e.stage, e.status) for e in events if isinstance(e, StageEvent)]
    assert stages == [(s, w) for s in ("text", "denoise", "decode") for w in ("begin", "end")] + [("done", "end")]
    steps = [e for e in events if isinstance(e, StepState)]
    assert [s.step for s in steps] == [1, 2, 3] and steps[-1].eta_s == 0
    assert [s.sigma for s in steps] == list(engine.plan(REQUEST).schedule.sigmas[:-1])
    assert all(s.x0.shape == (1, 4, 5, 4, 6) and s.preview() is None for s in steps)
    chunks = [e for e in events if isinstance(e, FrameChunk)]
    assert [(c.index, len(c.frames)) for c in chunks] == [(0, 1), (1, 4), (5, 4), (9, 4), (13, 4)]
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), alone)


def test_the_report_and_the_provenance(engine: Engine) -> None:
    result = engine.generate(REQUEST, keep_latents=True)
    report, made = result.report, result.provenance
    assert [s.name for s in report.stages] == ["text", "denoise", "decode"]
    assert all(s.ms > 0 and s.peak_bytes > 0 for s in report.stages)
    assert report.total_ms >= sum(s.ms for s in report.stages) and report.peak_rss_bytes > 0
    assert set(report.implementations) == {choice.op for choice in engine.plan(REQUEST).ops}
    assert made.frames_sha256 == (frames_sha256(result.frames),) and len(made.model_digest) == 64
    recorded = json.loads(json.dumps(made.record()))["request"]
    assert GenerateRequest.from_dict(recorded).resolve(engine.card) == made.request
    assert engine.provenance(REQUEST) == made.record()
    assert result.latents is not None and result.latents[0].shape == (1, 4, 5, 4, 6)
    json.dumps(report.to_dict())
    assert "denoise" in str(report)


def test_two_requests_interleaved_give_the_bits_they_give_alone(engine: Engine, alone: np.ndarray) -> None:
    other = replace(REQUEST, prompt="a blue cube", seed=9)
    streams = [engine.stream(REQUEST), engine.stream(other)]
    frames: list[list[np.ndarray]] = [[], []]
    running = [0, 1]
    while running:
        for i in list(running):
            event = next(streams[i], None)
            if event is None:
                running.remove(i)
            elif isinstance(event, FrameChunk):
                frames[i].append(event.frames)
    assert np.array_equal(np.concatenate(frames[0]), alone)
    assert np.array_equal(np.concatenate(frames[1]), engine.generate(other).frames)


def test_threads_give_the_same_bits(engine: Engine, alone: np.ndarray) -> None:
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        found[index] = engine.generate(REQUEST).frames

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(np.array_equal(frames, alone) for frames in found.values())


def test_variants_are_single_runs_with_the_next_seeds(engine: Engine, alone: np.ndarray) -> None:
    result = engine.generate(replace(REQUEST, num_videos_per_prompt=2))
    assert np.array_equal(result.videos[0], alone)
    assert np.array_equal(result.videos[1], engine.generate(replace(REQUEST, seed=2)).frames)
    assert not np.array_equal(result.videos[0], result.videos[1])
    assert result.provenance.record(1)["request"]["seed"] == 2


def test_closing_a_stream_frees_its_tensors(engine: Engine) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))

    list(engine.stream(REQUEST))  # whatever is kept for good is kept now
    before = tensors()
    for stop in (1, 4, 9):  # in the text, between steps, between chunks
        stream = engine.stream(REQUEST)
        for _ in range(stop):
            event = next(stream)
        latents = weakref.ref(event.x0) if isinstance(event, StepState) else None
        stream.close()
        del event
        assert tensors() == before
        assert latents is None or latents() is None


def test_dropping_a_stream_cancels_it(engine: Engine) -> None:
    stream = engine.stream(REQUEST)
    state = next(event for event in stream if isinstance(event, StepState))
    latents = weakref.ref(state.x0)
    del state, stream
    gc.collect()
    assert latents() is None


def test_gradients_and_inference_mode_do_not_leak_out_of_a_stream(engine: Engine) -> None:
    for _ in engine.stream(REQUEST):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_bad_request_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(RequestError) as caught:
        engine.stream(replace(REQUEST, num_frames=8, height=33, prompt=" "))
    assert set(caught.value.fields) == {"num_frames", "height", "prompt"}


def test_a_cut_prompt_is_told_by_the_plan_the_stream_the_report_and_the_record(engine: Engine) -> None:
    words = " ".join(["red ball"] * 300)
    request = replace(REQUEST, prompt=words, negative_prompt=words + " a", num_inference_steps=1)
    notes = engine.plan(request).notes
    assert [note.partition(" the last")[0] for note in notes] == [
        "prompt: cut to 512 tokens:",
        "negative_prompt: cut to 512 tokens:",
    ]
    first, *_, done = engine.stream(request)
    assert isinstance(first, StageEvent) and first.note == "; ".join(notes)
    assert isinstance(done, StageEvent) and done.report is not None and done.report.notes == notes
    assert engine.provenance(request)["notes"] == list(notes)
    assert len(engine.plan(replace(request, guidance_scale=1.0)).notes) == 2  # the negative one has no effect instead


def test_a_negative_prompt_without_guidance_is_told(engine: Engine) -> None:
    plan = engine.plan(replace(REQUEST, guidance_scale=1.0))
    assert any("negative_prompt has no effect" in note for note in plan.notes) and plan.forwards == 3


@pytest.mark.parametrize("name", ["blocks.1.attn1.to_q", "condition_embedder.time_proj", "proj_out"])
def test_nan_is_found_at_its_step_and_its_operation(name: str) -> None:
    with Engine.load(tiny.folder("t2v"), device="cpu") as engine:
        with torch.no_grad():
            engine._components.transformer(0).get_submodule(name).bias[0] = torch.nan
        with pytest.raises(NonFiniteError, match=rf"step 1 of 3 .*'{name}'") as caught:
            engine.generate(REQUEST)
    assert "float32" in str(caught.value)


def test_flat_latents_are_refused() -> None:
    with Engine.load(tiny.folder("t2v"), device="cpu") as engine:
        solved = replace(REQUEST, guidance_scale=1.0, solver="euler", num_inference_steps=1)
        velocity = engine._components.transformer(0)
        velocity.forward = lambda x, *_a, **_k: x / 1.0  # type: ignore[method-assign,assignment]
        with pytest.raises(NonFiniteError, match="flat"):
            engine.generate(solved)


def test_broken_pixels_are_found() -> None:
    with Engine.load(tiny.folder("t2v"), device="cpu") as engine:
        with torch.no_grad():
            engine._components.vae().decoder.conv_out.bias[0] = torch.inf
        with pytest.raises(NonFiniteError, match="decode"):
            engine.generate(REQUEST)


def test_too_little_memory_is_refused_with_what_would_fit() -> None:
    engine = Engine.open(tiny.folder("t2v"), device="cpu", memory_budget_bytes=150_000_000)
    large = replace(REQUEST, height=1024, width=1536, num_frames=81)
    plan = engine.plan(large)
    assert not plan.fits and "does not fit" in str(plan)
    with pytest.raises(MemoryBudgetError, match="would fit") as caught:
        engine.stream(large)
    size = next(word for word in str(caught.value).split() if "x" in word and word[0].isdigit() and word[-1].isdigit())
    assert size
    height, width = plan_size(plan.would_fit[-1])
    assert engine.plan(replace(large, height=height, width=width)).fits
    assert not Engine.open(tiny.folder("t2v"), memory_budget_bytes=1000).plan(REQUEST).would_fit


def plan_size(advice: str) -> tuple[int, int]:
    """Height and width in advice like "96x64 with num_frames=9"."""
    width, height = advice.split()[0].split("x")
    return int(height), int(width)


@pytest.mark.parametrize("variant", ["t2v-a14b", "i2v"])
def test_a_run_that_lets_go_of_components_gives_the_same_bits(variant: str) -> None:
    image = np.zeros((20, 30, 3), np.uint8) if variant == "i2v" else None
    request = replace(REQUEST, image=image)
    with Engine.load(tiny.folder(variant), device="cpu") as engine:
        whole = engine.plan(request)
        expected = engine.generate(request).frames
    held = sum(whole.weights_bytes.values())
    budget = whole.peak_bytes - held // 10
    with Engine.load(tiny.folder(variant), device="cpu", memory_budget_bytes=budget) as engine:
        plan = engine.plan(request)
        assert plan.staged and plan.fits and plan.peak_bytes < whole.peak_bytes
        assert engine._components.held_bytes() > 0  # all weights fit, so what loading brings is here and has to go
        chunks = []
        for event in engine.stream(request):
            stage = "decode" if isinstance(event, FrameChunk) else event.stage
            assert engine._components.held_bytes() <= counted_weights(plan, stage)
            if isinstance(event, StepState):
                assert engine._components.held_bytes() > 0
            elif isinstance(event, FrameChunk):
                chunks.append(event.frames)
        assert np.array_equal(np.concatenate(chunks), expected)


def counted_weights(plan: GenerationPlan, stage: str) -> int:
    """Bytes of weights that a staged plan counts for a stage; none when all is done."""
    if stage == "done":
        return 0
    sizes = {name: plan.weights_bytes[name] for name in plan.stage(stage).networks}
    experts = [sizes.pop(name) for name in EXPERTS if name in sizes]
    return sum(sizes.values()) + max(experts, default=0)


def poison(file: Path) -> None:
    """Put a NaN into the last tensor of a safetensors file."""
    state = load_file(file)
    state[max(state)].view(-1)[-1] = torch.nan
    save_file(state, file)


@pytest.mark.parametrize("staged", [True, False])
def test_a_damaged_autoencoder_is_told_before_the_first_step(tmp_path: Path, staged: bool) -> None:
    shutil.copytree(tiny.folder("t2v"), tmp_path / "t2v")
    poison(tmp_path / "t2v/vae/diffusion_pytorch_model.safetensors")
    engine = Engine.open(tmp_path / "t2v", device="cpu")
    if staged:
        budget = engine.plan(REQUEST).peak_bytes - 1
        engine = Engine.open(tmp_path / "t2v", device="cpu", memory_budget_bytes=budget)
    assert engine.plan(REQUEST).staged is staged
    with pytest.raises(CheckpointError, match=r"vae .* has NaN or infinite values"):
        for event in engine.stream(REQUEST):
            assert not isinstance(event, StepState)


def test_a_staged_engine_looks_through_the_autoencoder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    check = components.check_values
    monkeypatch.setattr(components, "check_values", lambda part, **how: looked.append(part.name) or check(part, **how))
    budget = Engine.open(tiny.folder("t2v"), device="cpu").plan(REQUEST).peak_bytes - 1
    with Engine.open(tiny.folder("t2v"), device="cpu", memory_budget_bytes=budget) as engine:
        for _ in range(2):
            engine.generate(REQUEST)
    assert looked == ["vae"]


def test_two_experts_prepare_once_for_all_variants_where_both_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    request, prepared = replace(REQUEST, num_videos_per_prompt=3), []
    prepare = WanTransformer.prepare_text
    monkeypatch.setattr(WanTransformer, "prepare_text", lambda *args: prepared.append(1) or prepare(*args))
    with Engine.load(tiny.folder("t2v-a14b"), device="cpu") as engine:
        assert {step.expert for step in engine.plan(request).guidance} == {0, 1}
        engine.generate(request)
    assert len(prepared) == 2


def test_preloading_is_what_loading_does_beyond_opening() -> None:
    with Engine.open(tiny.folder("t2v"), device="cpu") as engine:
        engine.preload()
        sizes = engine.plan(REQUEST).weights_bytes
        assert engine._components.held_bytes() == sizes["transformer"] + sizes["vae"]
    with Engine.open(tiny.folder("t2v"), device="cpu", memory_budget_bytes=1000) as engine:
        engine.preload()
        assert engine._components.held_bytes() == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_picture(dtype: str, alone: np.ndarray) -> None:
    with Engine.load(tiny.folder("t2v"), device="cpu", dtype=dtype) as engine:
        assert engine.plan(REQUEST).dtype == dtype
        frames = engine.generate(REQUEST).frames
    assert np.abs(frames.astype(int) - alone).mean() < 8


def test_opening_reads_no_weights() -> None:
    engine = Engine.open(tiny.folder("t2v"), device="cpu")
    engine.plan(REQUEST)
    assert engine._components.held_bytes() == 0


def test_an_engine_that_was_closed_loads_anew(alone: np.ndarray) -> None:
    engine = Engine.load(tiny.folder("t2v"), device="cpu")
    engine.close()
    assert engine._components.held_bytes() == 0
    assert np.array_equal(engine.generate(REQUEST).frames, alone)


def test_bad_models_and_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model_index"):
        Engine.load(tmp_path)
    with pytest.raises(RequestError, match="did you mean 'device'"):
        Engine.load(tiny.folder("t2v"), devise="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="device: no 'cuda'"):
            Engine.load(tiny.folder("t2v"), device="cuda")


def test_embeddings_are_kept_within_their_bytes() -> None:
    rows = torch.zeros(10, 10)
    kept = Embeddings(limit_bytes=3 * rows.nbytes)
    for i in range(5):
        kept.put(str(i), Embedded(rows))
        assert kept.get("0") is not None  # used all the time, so the last to go
    assert kept.size_bytes() <= 3 * rows.nbytes and kept.get("1") is None and kept.get("4") is not None


def test_results_are_saved_as_mp4_with_their_record(engine: Engine, tmp_path: Path) -> None:
    from glimt.video.record import read_record

    result = engine.generate(replace(REQUEST, num_videos_per_prompt=2))
    paths = result.save(tmp_path / "ball.mp4")
    assert [path.name for path in paths] == ["ball-1.mp4", "ball-2.mp4"]
    records: list[dict[str, Any]] = [read_record(path) for path in paths]
    assert [r["request"]["seed"] for r in records] == [1, 2]
    assert tuple(r["frames"]["sha256"] for r in records) == result.provenance.frames_sha256
    assert records[0]["model"]["digest"] == engine.digest

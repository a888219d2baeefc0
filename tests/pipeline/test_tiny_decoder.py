"""The tiny decoder as the final path, by choice and by name; files that are none are refused with what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glimt.engine import Engine
from glimt.errors import CheckpointError, MemoryBudgetError, RequestError
from glimt.models.taehv.config import TinyConfig
from glimt.models.taehv.model import TinyAutoencoder
from glimt.pipeline.events import FrameChunk
from glimt.request import GenerateRequest
from glimt.weights.folder import read_folder
from models import tiny

REQUEST = GenerateRequest(
    "a red ball", "slowly", height=32, width=48, num_frames=17, num_inference_steps=2, seed=1, decoder="tiny"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    file = str(tiny.tiny_decoder("t2v"))
    with Engine.load(tiny.folder("t2v"), device="cpu", quality="lossy", tiny_decoder=file) as made:
        yield made


def by_hand(latents: torch.Tensor) -> np.ndarray:
    """The file's weights in a module made here, all frames at once."""
    weights = load_file(tiny.tiny_decoder("t2v"))
    model = TinyAutoencoder(TinyConfig.from_shapes({name: tuple(t.shape) for name, t in weights.items()}))
    model.load_state_dict(weights)
    with torch.no_grad():
        pixels = model.decode(latents)[0].permute(1, 2, 3, 0)
    return ((pixels / 2 + 0.5) * 255).round().to(torch.uint8).numpy()


def test_frames_are_those_of_the_file_for_the_finished_latents(engine: Engine) -> None:
    result = engine.generate(REQUEST, keep_latents=True)
    assert result.latents is not None and result.frames.shape == (17, 32, 48, 3)
    assert np.abs(result.frames.astype(int) - by_hand(result.latents[0])).max() <= 1
    full = engine.generate(replace(REQUEST, decoder="vae"), keep_latents=True)
    assert full.latents is not None and torch.equal(full.latents[0], result.latents[0])
    assert not np.array_equal(full.frames, result.frames)


def test_latents_by_themselves_are_decoded_by_it_where_it_is_asked_for(engine: Engine) -> None:
    latents = torch.randn(1, 4, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = np.concatenate([chunk.frames for chunk in engine.decode(latents, decoder="tiny")])
    assert found.shape == (17, 32, 48, 3) and np.abs(found.astype(int) - by_hand(latents)).max() <= 1
    plans = [engine.plan_decode(latents.shape, decoder=name) for name in ("vae", "tiny")]
    assert plans[1].flops < plans[0].flops and plans[1].note == "" and "pieces" not in str(plans[1])
    with pytest.raises(MemoryBudgetError, match="decoding 17 frames of 48x32"):
        engine.plan_decode(latents.shape, decoder="tiny", memory_budget=100_000)
    with pytest.raises(RequestError, match="did you mean 'tiny'"):
        engine.decode(latents, decoder="tini")


def test_decoding_refuses_it_where_it_is_not_or_is_not_allowed() -> None:
    file, shape = str(tiny.tiny_decoder("t2v")), (1, 4, 2, 4, 6)
    with pytest.raises(RequestError, match="class lossy"):
        Engine.open(tiny.folder("t2v"), device="cpu", tiny_decoder=file).plan_decode(shape, decoder="tiny")
    with pytest.raises(RequestError, match="has no tiny decoder"):
        Engine.open(tiny.folder("t2v"), device="cpu", quality="lossy").plan_decode(shape, decoder="tiny")


def test_plan_report_and_record_say_so(engine: Engine) -> None:
    plan, result = engine.plan(REQUEST), engine.generate(REQUEST)
    assert "tiny (class lossy" in str(plan) and plan.to_dict()["decoder"] == "tiny"
    assert plan.stage("decode").networks == ("tiny_decoder",)
    assert plan.stage("decode").flops < engine.plan(replace(REQUEST, decoder="vae")).stage("decode").flops
    assert result.report.decoder == "tiny" and "class lossy" in str(result.report)
    record = result.provenance.record()
    assert record["request"]["decoder"] == "tiny" and record["config"]["tiny_decoder"] == str(tiny.tiny_decoder("t2v"))
    assert "tiny_decoder" in record["model"]["components"]


def test_the_record_names_the_tiny_decoder_only_where_it_makes_the_frames(engine: Engine) -> None:
    plain = engine.provenance(replace(REQUEST, decoder="vae"))
    with Engine.open(tiny.folder("t2v"), device="cpu") as bare:
        assert (
            plain["model"]["digest"]
            == bare.digest
            == bare.provenance(replace(REQUEST, decoder="vae"))["model"]["digest"]
        )
    assert engine.provenance(REQUEST)["model"]["digest"] != plain["model"]["digest"]


def test_a_staged_run_has_no_autoencoder_in_memory_for_it(engine: Engine) -> None:
    whole = engine.plan(REQUEST)
    least = max(stage.peak_bytes for stage in whole.stages)
    file = str(tiny.tiny_decoder("t2v"))
    with Engine.load(
        tiny.folder("t2v"), device="cpu", quality="lossy", tiny_decoder=file, memory_budget_bytes=least - 1
    ) as small:
        assert small.plan(REQUEST).staged
        assert np.array_equal(small.generate(REQUEST).frames, engine.generate(REQUEST).frames)


def test_chunks_come_as_they_are_decoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.generate(REQUEST).frames
    monkeypatch.setattr("glimt.plan.previews.tiny_chunk", lambda *_: 2)
    chunks = [event for event in engine.stream(REQUEST) if isinstance(event, FrameChunk)]
    assert [(chunk.index, len(chunk.frames)) for chunk in chunks] == [(0, 5), (5, 8), (13, 4)]
    assert np.abs(np.concatenate([chunk.frames for chunk in chunks]).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("quality", ["exact", "equivalent"])
def test_it_is_refused_by_name_where_the_quality_does_not_allow_it(quality: str) -> None:
    file = str(tiny.tiny_decoder("t2v"))
    with (
        Engine.open(tiny.folder("t2v"), device="cpu", quality=quality, tiny_decoder=file) as engine,
        pytest.raises(
            RequestError, match=rf"^decoder: 'tiny' changes the picture .*{quality}.*quality='lossy'"
        ) as caught,
    ):
        engine.plan(REQUEST)
    assert caught.value.fields == ("decoder",)


def test_a_model_without_one_says_what_to_give() -> None:
    with (
        Engine.open(tiny.folder("t2v"), device="cpu", quality="lossy") as engine,
        pytest.raises(RequestError, match=r"(?s)decoder: .*has no tiny decoder.*preview: .*has no tiny decoder"),
    ):
        engine.plan(replace(REQUEST, preview="tiny", preview_every=1))


def test_a_checkpoint_s_own_is_found_in_its_folder_and_diffusers_passes_it_over(tmp_path: Path) -> None:
    from diffusers import WanPipeline

    shutil.copytree(tiny.folder("t2v"), tmp_path / "model")
    (tmp_path / "model/tiny_decoder").mkdir()
    shutil.copy(tiny.tiny_decoder("t2v"), tmp_path / "model/tiny_decoder/model.safetensors")
    assert "tiny_decoder" in read_folder(tmp_path / "model").components
    WanPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    (tmp_path / "model/tiny_decoder/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tiny_decoder/model\.safetensors: no such file"):
        read_folder(tmp_path / "model")


def test_one_that_does_not_fit_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Engine.open(tiny.folder("t2v"), device="cpu", tiny_decoder=str(tiny.tiny_decoder("ti2v")))
    text = str(caught.value)
    assert "6 latent channels, the model's autoencoder has 4" in text and "16 pixels a side" in text
    weights = load_file(tiny.tiny_decoder("t2v"))
    weights["decoder.3.conv.0.weight"] = torch.zeros(16, 16, 3, 3)
    weights["decoder.4.more"] = torch.zeros(1)
    del weights["decoder.22.bias"]
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Engine.open(tiny.folder("t2v"), device="cpu", tiny_decoder=str(tmp_path / "broken.safetensors"))
    assert all(name in str(caught.value) for name in ("decoder.3.conv.0.weight", "decoder.4.more", "decoder.22.bias"))


def test_pickles_are_refused_unless_asked_for(tmp_path: Path, engine: Engine) -> None:
    file = str(tmp_path / "taew2_1.pth")
    torch.save(load_file(tiny.tiny_decoder("t2v")), file)
    with pytest.raises(CheckpointError, match="pickle"):
        Engine.open(tiny.folder("t2v"), device="cpu", quality="lossy", tiny_decoder=file)
    with Engine.load(
        tiny.folder("t2v"), device="cpu", quality="lossy", tiny_decoder=file, allow_pickle=True
    ) as pickled:
        assert np.array_equal(pickled.generate(REQUEST).frames, engine.generate(REQUEST).frames)

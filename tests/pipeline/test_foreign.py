"""Other families, by Diffusers: frames are those of Diffusers called by hand, errors say what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glimt.cli import main
from glimt.engine import Engine
from glimt.errors import CheckpointError, MissingDependencyError, RequestError
from glimt.pipeline.foreign import ForeignVae
from glimt.report import frames_sha256
from glimt.video.clip import open_clip
from models import tiny
from models.foreign_vaes import FOREIGN, made

COG = "AutoencoderKLCogVideoX"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open(tiny.folder("t2v"), device="cpu") as opened:
        yield opened


def latents(name: str) -> torch.Tensor:
    channels = FOREIGN[name]["latent_channels"]
    return torch.randn(1, channels, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def by_hand(name: str, z: torch.Tensor) -> np.ndarray:
    """As the pipelines of Diffusers call it."""
    import diffusers

    model = getattr(diffusers, name).from_pretrained(made(name))
    with torch.no_grad():
        if name == "AutoencoderKLLTXVideo":
            mean, std = (value.view(1, -1, 1, 1, 1) for value in (model.latents_mean, model.latents_std))
            z = z * std / model.config.scaling_factor + mean
        else:
            z = z / model.config.scaling_factor
        if name == "AutoencoderKLTemporalDecoder":
            pixels = model.decode(z[0].permute(1, 0, 2, 3), num_frames=2).sample.permute(1, 0, 2, 3)
        else:
            pixels = model.decode(z).sample[0]
    return ((pixels.permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("name", FOREIGN)
def test_frames_are_those_of_diffusers(engine: Engine, name: str) -> None:
    expected = by_hand(name, latents(name))
    (chunk,) = engine.decode(latents(name), vae=made(name), fps=12)
    assert chunk.fps == 12 and chunk.frames.shape == expected.shape
    assert np.abs(chunk.frames.astype(int) - expected).max() <= 1
    assert expected.std() > 5, "a flat picture would prove little"


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    opened = ForeignVae.open(made(COG), "cpu", "float32")
    raw = latents(COG) / opened.module.config.scaling_factor
    save_file({"latents": raw}, "raw.safetensors", {"normalized": "false", "fps": "8"})
    save_file({"latents": latents(COG)}, "bare.safetensors")
    save_file({"latents": latents(COG)}, "wan.safetensors", {"vae_digest": "0" * 64, "fps": "8", "model": "other"})

    def run(file: str, *more: str) -> tuple[int, dict]:
        code = main(["decode", file, "-o", "a.mp4", "--vae", str(made(COG)), "--json", *more])
        return code, json.loads(capsys.readouterr().out)

    code, shown = run("raw.safetensors")
    expected = opened.decode(latents(COG))
    assert (code, shown["decoder"], shown["fps"]) == (0, COG, 8.0)
    assert shown["frames"] == len(expected) == open_clip("a.mp4").frames
    assert shown["sha256"] == frames_sha256(opened.decode(opened.normalized(raw)))
    assert np.abs(opened.decode(opened.normalized(raw)).astype(int) - expected).max() <= 1
    assert "--fps" in run("bare.safetensors")[1]["error"]["problems"][0]
    code, refused = run("wan.safetensors")
    assert code == 2 and "--anyway" in refused["error"]["problems"][0]
    assert run("wan.safetensors", "--anyway")[0] == 0
    assert "memory_budget" in run("raw.safetensors", "--memory-budget", "1GiB")[1]["error"]["problems"][0]


def test_without_the_extra_it_says_how_to_get_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(COG)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'glimt\[diffusers\]'"):
        engine.decode(latents(COG), vae=folder)


def test_what_cannot_be_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is native; give its model as --model"):
        engine.decode(latents(COG), vae=tiny.folder("t2v") / "vae")
    with pytest.raises(CheckpointError, match=r"no folder of an autoencoder"):
        engine.decode(latents(COG), vae=tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(CheckpointError, match=r"'AutoencoderKL' is not one of AutoencoderKLHunyuanVideo"):
        engine.decode(latents(COG), vae=tmp_path)
    (tmp_path / "config.json").write_text((made(COG) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"Diffusers cannot load this AutoencoderKLCogVideoX"):
        engine.decode(latents(COG), vae=tmp_path)
    with pytest.raises(RequestError, match=r"latents: \[1, 4, 3, 4\] are not for AutoencoderKLCogVideoX"):
        engine.decode(latents(COG)[:, :, 0], vae=made(COG))
    with pytest.raises(RequestError, match=r"decoder: 'tiny' is of this engine's model"):
        engine.decode(latents(COG), vae=made(COG), decoder="tiny")

"""``glimt encode`` and ``glimt decode``: real videos to latents and back, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from real_clips import real_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glimt.cli import main
from glimt.engine import Engine
from glimt.report import frames_sha256
from glimt.video.clip import open_clip
from glimt.video.latents import load_latents
from glimt_world import round_trip
from models import tiny

CARPHONE = str(real_clip("carphone_pristine"))


@pytest.fixture
def glimt(tmp_path, monkeypatch, capsys):
    """Runs a command on the tiny T2V checkpoint; gives its exit code and its JSON object."""
    monkeypatch.chdir(tmp_path)
    model = str(tiny.folder("t2v"))

    def run(*words: str) -> tuple[int, dict]:
        named = [] if "--model" in words else ["--model", model]
        code = main([words[0], *named, *words[1:], "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_real_video_becomes_latents_and_a_video_again(glimt):
    code, made = glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "17")
    assert (code, made["shape"], made["frames"]) == (0, [1, 4, 5, 18, 22], 17)
    with safe_open("a.safetensors", "pt") as file:
        said = file.metadata()
    assert said["format"] == "glimt-latents/1" and said["fps"] == "30000/1001" and said["normalized"] == "true"
    assert said["vae_digest"] == made["vae_digest"] and said["source"] == "carphone_pristine.mp4"
    code, shown = glimt("decode", "a.safetensors", "-o", "a.mp4")
    assert (code, shown["frames"], shown["width"], shown["height"]) == (0, 17, 176, 144)
    assert shown["fps"] == pytest.approx(30000 / 1001) and shown["decode"]["rows"] == 1 and shown["notes"] == []
    clip = open_clip("a.mp4")
    assert (clip.frames, str(clip.fps)) == (17, "30000/1001")


def test_the_latents_are_those_of_the_engine_whatever_the_budget(glimt):
    glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5", "--size", "352x288")
    clip = open_clip(CARPHONE)
    with Engine.open(tiny.folder("t2v"), device="cpu") as engine:
        expected = engine.encode(clip.read(5, (288, 352)))
        most = engine.plan_decode(expected.shape).peak_bytes
        budgets = range(most, 0, -most // 50)
        plans = ((budget, engine.plan_decode(expected.shape, memory_budget=budget)) for budget in budgets)
        budget = next(budget for budget, plan in plans if plan.tiled)
    assert torch.equal(load_latents("a.safetensors").tensor, expected)
    _, whole = glimt("decode", "a.safetensors", "-o", "whole.mp4")
    code, tiled = glimt("decode", "a.safetensors", "-o", "tiled.mp4", "--memory-budget", str(budget))
    assert code == 0 and tiled["decode"]["rows"] * tiled["decode"]["columns"] > 1
    frames = [np.concatenate(list(open_clip(f"{name}.mp4").read())) for name in ("whole", "tiled")]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() < 0.5 and whole["decode"]["columns"] == 1


def test_the_tiny_decoder_makes_the_frames_where_lossy_is_allowed(glimt):
    glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5")
    asked = ("decode", "a.safetensors", "-o", "a.mp4", "--decoder", "tiny")
    file = ("--tiny-decoder", str(tiny.tiny_decoder("t2v")))
    code, refused = glimt(*asked, *file)
    assert code == 2 and "class lossy" in refused["error"]["problems"][0] and not Path("a.mp4").exists()
    code, shown = glimt(*asked, *file, "--quality", "lossy")
    assert (code, shown["frames"], shown["decoder"], shown["quality"]) == (0, 5, "tiny", "lossy")
    with Engine.open(tiny.folder("t2v"), device="cpu", quality="lossy", tiny_decoder=file[1]) as engine:
        made = np.concatenate([c.frames for c in engine.decode(load_latents("a.safetensors").tensor, decoder="tiny")])
    assert shown["sha256"] == frames_sha256(made) and open_clip("a.mp4").frames == len(made)
    assert glimt("decode", "a.safetensors", "-o", "b.mp4")[1]["decoder"] == "vae"
    assert "did you mean" in glimt(*asked[:-1], "tini")[1]["error"]["problems"][0]


def test_the_bundled_autoencoder_gives_a_real_video_back(tmp_path, monkeypatch, capsys):
    """It was never shown the like; how well it does is reported, and that it is the video is seen."""
    monkeypatch.setattr("sys.argv", ["round_trip", "--clip", CARPHONE, "--frames", "5"])
    round_trip.main()
    said = re.search(r"5 frames of carphone_pristine.mp4: mean (\S+) dB, worst (\S+) dB", capsys.readouterr().out)
    assert said is not None and 12 < float(said[2]) <= float(said[1]) < 60


def test_sizes_that_are_not_on_the_grid_are_told_with_what_to_type(glimt):
    code, refused = glimt("encode", CARPHONE, "-o", "a.safetensors", "--size", "177x145")
    problems = "\n".join(refused["error"]["problems"])
    assert code == 2 and "--frames: 120 is not 4 n + 1; nearest: 117 or 121" in problems
    assert "--frames N" in problems and "--size WxH" in problems and "nearest: 176 or 184" in problems
    code, refused = glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "121")
    assert code == 2 and "which has 120" in refused["error"]["problems"][0]
    assert not Path("a.safetensors").exists()
    assert glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5", "--size", "32x24")[1]["shape"][3:] == [
        3,
        4,
    ]


def test_everything_wrong_is_told_at_once(glimt):
    code, refused = glimt("encode", "none.mp4", "-o", "a.txt")
    assert code == 2 and len(refused["error"]["problems"]) == 2
    code, refused = glimt("decode", "none.safetensors", "-o", "a.txt", "--crf", "0")
    assert code == 2 and len(refused["error"]["problems"]) == 3
    code, refused = glimt("decode")
    assert code == 2 and len(refused["error"]["problems"]) == 2
    code, refused = glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5", "--memory-budget", "100KB")
    assert (code, refused["error"]["kind"]) == (2, "MemoryBudgetError")


def test_latents_of_another_autoencoder_are_refused_unless_anyway(glimt):
    glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5")
    tensors = load_file("a.safetensors")
    save_file(tensors, "b.safetensors", {"vae_digest": "0" * 64, "model": "other", "normalized": "true"})
    code, refused = glimt("decode", "b.safetensors", "-o", "b.mp4")
    assert code == 2 and "these latents are of other" in refused["error"]["problems"][0]
    code, shown = glimt("decode", "b.safetensors", "-o", "b.mp4", "--anyway")
    assert code == 0 and "other" in shown["notes"][0]
    save_file({"x": torch.zeros(1, 5, 2, 3, 3)}, "c.safetensors")
    assert "it takes [1, 4, f, h, w]" in glimt("decode", "c.safetensors", "-o", "c.mp4")[1]["error"]["problems"][0]


def test_latents_of_either_scale_give_the_same_video(glimt):
    glimt("encode", CARPHONE, "-o", "a.safetensors", "--frames", "5")
    latents = load_latents("a.safetensors").tensor
    with Engine.open(tiny.folder("t2v"), device="cpu") as engine:
        raw = engine._components.vae().denormalize(latents)
    save_file({"latents": raw}, "raw.safetensors", {"normalized": "false", "fps": "30000/1001"})
    save_file({"latents": latents[0].contiguous()}, "bare.safetensors")
    first = glimt("decode", "a.safetensors", "-o", "a.mp4")[1]
    second = glimt("decode", "raw.safetensors", "-o", "raw.mp4")[1]
    bare = glimt("decode", "bare.safetensors", "-o", "bare.mp4", "--fps", "12")[1]
    frames = [np.concatenate(list(open_clip(f"{name}.mp4").read())) for name in ("a", "raw")]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() < 0.5 and len(second["notes"]) == 1
    assert bare["sha256"] == first["sha256"] and bare["fps"] == 12 and len(bare["notes"]) == 2

"""The commands on the real engine and a tiny random checkpoint: what is written can be made again, bit for bit."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
import threading

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from rich.live import Live
from safetensors.torch import load_file, save_file
from weights_checkpoint import to_official

from glimt.cli import main
from glimt.engine import Engine
from glimt.pipeline import decode
from glimt.pipeline.condition import load_pictures
from glimt.request import GenerateRequest
from glimt.video import mp4
from glimt.video.record import read_record
from models import tiny

SIZE = ["--size", "64x32", "--frames", "9", "--steps", "3"]


@pytest.fixture
def glimt(tmp_path, monkeypatch, capsys):
    """Runs a command on the tiny TI2V checkpoint; gives its exit code and its JSON object."""
    monkeypatch.chdir(tmp_path)
    model = str(tiny.folder("ti2v"))

    def run(*words: str) -> tuple[int, dict]:
        named = [] if words[0] == "reproduce" else ["--model", model]
        code = main([words[0], *named, *words[1:], "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_every_variant_of_a_run_is_made_again_alone(glimt):
    code, made = glimt("generate", "a red ball rolls left", "-o", "a.mp4", *SIZE, "--variants", "2", "--seed", "4")
    assert code == 0
    assert {stage["name"] for stage in made["report"]["stages"]} >= {"text", "denoise", "decode"}
    digests = {video["sha256"] for video in made["videos"]}
    assert len(digests) == 2
    for video in made["videos"]:
        code, found = glimt("reproduce", video["path"])
        assert (code, found["identical"], found["made"]) == (0, True, video["sha256"])


def test_a_record_finds_its_model_as_it_was_typed_and_says_no_more_of_its_place(glimt, tmp_path, monkeypatch):
    shutil.copytree(tiny.folder("ti2v"), tmp_path / "models/tiny")
    shutil.copytree(tiny.folder("ti2v") / "transformer", tmp_path / "mine")
    assert glimt("generate", "a red ball", "-o", "a.mp4", *SIZE, "--model", "models/tiny")[0] == 0
    parts = ["--model", "./mine", "--base", "models/tiny"]
    assert glimt("generate", "a red ball", "-o", "b.mp4", *SIZE, *parts)[0] == 0
    for name in ("a.mp4", "b.mp4"):
        code, found = glimt("reproduce", name)
        assert (code, found["identical"]) == (0, True)
        assert str(tmp_path) not in json.dumps(read_record(name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, found = glimt("reproduce", "../b.mp4")
    assert code == 2
    told = "\n".join(found["error"]["problems"])
    assert "'./mine' with the base 'models/tiny'" in told and "with --model and --base" in told
    assert glimt("reproduce", "../a.mp4", "--model", "../models/tiny")[0] == 0


def test_a_video_from_a_picture_is_made_again_only_while_the_picture_is_the_same(glimt, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "first.png")
    assert glimt("generate", "a red ball", "-o", "a.mp4", *SIZE, "--image", "first.png")[0] == 0
    assert glimt("reproduce", "a.mp4")[0] == 0
    Image.fromarray(255 - picture).save(tmp_path / "first.png")
    code, found = glimt("reproduce", "a.mp4")
    assert code == 2
    assert "first.png" in found["error"]["problems"][0]


def whole_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n",
        whole_png()[:-500],
        whole_png().replace(struct.pack(">II", 64, 32), struct.pack(">II", 60000, 60000)),
        b"\0\0\0\x20ftypisom" + bytes(64),
        b"\0\0\0\x20ftypavif" + bytes(64),
    ],
    ids=["signature alone", "cut short", "larger than any picture", "video", "empty AVIF"],
)
def test_a_damaged_picture_is_refused_before_weights_are_read(glimt, tmp_path, monkeypatch, content):
    (tmp_path / "first.png").write_bytes(content)
    monkeypatch.setattr(Engine, "preload", None)
    for command in (["generate", "-o", "a.mp4"], ["plan"]):
        code, found = glimt(*command, "a red ball", *SIZE, "--image", "first.png")
        assert code == 2
        (problem,) = found["error"]["problems"]
        assert problem.startswith("--image: ") and "first.png" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["first.png"]


def test_a_photograph_stands_upright(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the first row is the right side
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    request = GenerateRequest("a ball", image=tmp_path / "a.png")
    (found,) = load_pictures(request)  # type: ignore[arg-type]
    assert np.array_equal(found, np.rot90(picture, -1))


def test_switches_are_named_as_they_are_typed(glimt, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04")
    (problem,) = glimt("plan", "a ball", "--model", "weights.pt")[1]["error"]["problems"]
    assert "--allow-pickle" in problem and "allow_pickle" not in problem


def test_rules_of_request_schedule_and_positions_are_told_together(glimt):
    words = ["--size", "50x32", "--frames", "40001", "--solver", "dmd", "--steps", "7", "--shift", "1000"]
    code, found = glimt("plan", "a red ball", *words)
    assert code == 2
    starts = [problem.partition(":")[0] for problem in found["error"]["problems"]]
    assert sorted(starts) == ["--frames", "--shift", "--size (width)", "--steps"]


def test_the_record_says_all_that_made_the_video(glimt):
    glimt("generate", "a red ball", "-o", "a.mp4", *SIZE, "--guidance", "2", "--negative", "blue")
    record = read_record("a.mp4")
    assert record["request"]["guidance_scale"] == 2
    assert record["request"]["solver"] == "unipc"  # nothing is left to the model's defaults
    assert record["config"]["dtype"] == "float32"
    assert record["implementations"]
    packages = {"torch", "tokenizers", "ftfy", "pillow", "huggingface_hub"}
    assert packages <= set(record["versions"])
    assert torch.backends.cpu.get_cpu_capability() in record["versions"]["instruction set"]


def test_another_instruction_set_is_named(glimt, monkeypatch):
    glimt("generate", "a red ball", "-o", "a.mp4", *SIZE)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    (difference,) = glimt("reproduce", "a.mp4")[1]["differences"]
    assert difference.startswith("versions: instruction set was") and "is OTHER (PyTorch)" in difference


def test_previews_are_written_from_the_steps(glimt, tmp_path):
    code, made = glimt("generate", "a red ball", "-o", "a.mp4", *SIZE, "--preview-dir", "p", "--preview-every", "2")
    assert code == 0
    assert made["previews"] == ["p/preview-seed0-step002.png"]
    assert Image.open(tmp_path / "p/preview-seed0-step002.png").width > 3 * 64


def test_a_plan_and_a_refusal_need_no_weights(glimt):
    code, plan = glimt("plan", "a red ball", *SIZE)
    assert (code, plan["pixels"], plan["seeds"]) == (0, [3, 9, 32, 64], [0])
    code, refusal = glimt("generate", "a red ball", "-o", "a.mp4", *SIZE, "--memory-budget", "1MB")
    assert (code, refusal["error"]["kind"]) == (2, "MemoryBudgetError")


def test_frames_are_encoded_while_later_ones_are_still_to_be_decoded(glimt, monkeypatch):
    """The second chunk is not decoded before the encoder is through with the whole of the first: it must not wait."""
    to_yuv, decode_chunk = mp4._ToYuv.__call__, decode._decode_chunk
    first_chunk_is_encoded = threading.Event()
    starts = []

    def encode(self, picture, index):
        if index == 0:  # all of the first chunk
            first_chunk_is_encoded.set()
        return to_yuv(self, picture, index)

    def patient(vae, latents, cache, index):
        starts.append(index)
        assert index == 0 or first_chunk_is_encoded.wait(60)
        return decode_chunk(vae, latents, cache, index)

    monkeypatch.setattr(mp4._ToYuv, "__call__", encode)
    monkeypatch.setattr(decode, "_decode_chunk", patient)
    assert glimt("generate", "a red ball", "-o", "a.mp4", *SIZE[:2], "--frames", "17", "--steps", "1")[0] == 0
    assert starts == [0, 1, 5, 9, 13]


@pytest.mark.parametrize("variant", ["t2v", "ti2v"])
def test_an_official_file_with_a_base_gives_the_frames_of_the_folder_it_was_made_from(variant, tmp_path, capsys):
    folder = tiny.folder(variant)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    state = {to_official(name): tensor for name, tensor in load_file(weights).items()}
    assert "blocks.0.self_attn.q.weight" in state
    save_file(state, tmp_path / "wan.safetensors")
    heads = json.loads((folder / "transformer" / "config.json").read_text())["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": heads}))
    digests = []
    for model in (["--model", str(folder)], ["--model", str(tmp_path / "wan.safetensors"), "--base", str(folder)]):
        words = ["generate", "a red ball", "--negative", "blue", *SIZE, "-o", str(tmp_path / "a.mp4"), "--json"]
        assert main([*words, *model]) == 0
        digests += [video["sha256"] for video in json.loads(capsys.readouterr().out)["videos"]]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("command", ["generate", "reproduce"])
@pytest.mark.parametrize("quiet", [False, True])
def test_the_hubs_bars_are_not_among_ours_and_not_shown_at_all_when_quiet(
    glimt, tmp_path, monkeypatch, capsys, command, quiet
):
    if command == "reproduce":
        assert glimt("generate", "a red ball", "-o", "a.mp4", *SIZE)[0] == 0
    live: list[Live] = []
    shown_while_downloading = []
    start = Live.start

    def noted(bars, *arguments, **options):
        live.append(bars)
        start(bars, *arguments, **options)

    def download(*_, **__):
        shown_while_downloading.append(bool(live))
        for _ in huggingface_hub.utils.tqdm(range(1), desc="Fetching", disable=False):
            pass
        return str(tiny.folder("ti2v"))

    monkeypatch.setattr(Live, "start", noted)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ["generate", "a red ball", "-o", "b.mp4", *SIZE] if command == "generate" else ["reproduce", "a.mp4"]
    assert main([*words, "--model", "org/name", *(["-q"] if quiet else [])]) == 0
    assert shown_while_downloading == [False]
    assert ("Fetching" in capsys.readouterr().err) == (not quiet)
    assert bool(live) == (not quiet)
    assert not huggingface_hub.utils.are_progress_bars_disabled()

"""What a user calls a model is found on this disk or on the Hub, and never on the network when that is off."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
import weights_checkpoint as tiny
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from glimt.errors import CheckpointError
from glimt.weights import hub
from glimt.weights.hub import download_patterns, open_model, resolve, whereabouts
from glimt.weights.origin import Origin
from glimt.weights.reader import MappedTensors


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a socket was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    return tmp_path / "hub"


def error(model: str | Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(model, **options)  # type: ignore[arg-type]
    return str(caught.value)


def fail_with(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    def download(*_: object, **__: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def hub_error(kind: type[Exception]) -> Exception:
    raised = kind.__new__(kind)
    Exception.__init__(raised, "the server said no\nat length")
    return raised


def test_what_is_on_disk_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "wan.safetensors").touch()
    assert resolve("org/name") == Path("org/name")
    assert resolve(tmp_path / "wan.safetensors") == tmp_path / "wan.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org") == tmp_path / "org"


def test_the_bundled_model_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "glimt_world"
    (package / "checkpoint").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(hub, "find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [str(package)]}))
    assert "not in this installation" in error("glimt-world")
    (package / "checkpoint" / "model_index.json").write_text("{}")
    assert resolve("glimt-world") == package / "checkpoint"
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    assert "not in this installation" in error("glimt-world")


def test_names_near_to_known_ones_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    assert "did you mean 'glimt-world'" in error("glimt_wrld")
    assert "did you mean 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'" in error("wan2.1-t2v-1.3b")
    assert "known models: glimt-world, Wan-AI/" in error("zzzz")
    assert "did you mean 'my-model'" in error("./my-modle")
    assert "did you mean 'my-model'" in error(Path("my-modle"))
    assert "no such file or folder" in error("x.safetensors")
    assert "does not exist either" in error("/nowhere/at/all")
    for odd in ("", "a b/c", "a/b/c", "org/name@", "\0", "x" * 5000, "org/" + "x" * 5000 + "!"):
        assert error(odd)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_and_not_cached_says_what_to_run(cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = error("Wan-AI/Wan2.1-T2V-1.3B-Diffuser@main", offline=True if how == "argument" else None)
    assert "hf download Wan-AI/Wan2.1-T2V-1.3B-Diffuser --revision main" in text
    assert "did you mean 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'" in text


def test_a_cached_model_is_found_offline(cache: Path) -> None:
    commit = "0" * 40
    repo = cache / "models--org--name"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "model_index.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert resolve("org/name", offline=True) == repo / "snapshots" / commit
    assert "is not in the local cache" in error("org/name@other", offline=True)
    with pytest.raises(CheckpointError, match="has no _class_name"):
        open_model("org/name", offline=True)


def test_revision_and_patterns_reach_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name@v1.2", offline=False) == tmp_path
    assert (asked["repo"], asked["revision"], asked["local_files_only"]) == ("org/name", "v1.2", False)


def test_only_files_that_are_read_are_fetched() -> None:
    wanted = {
        *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/spiece.model", "vae/config.json"),
        *(
            "vae/diffusion_pytorch_model.safetensors",
            "transformer_2/diffusion_pytorch_model-00001-of-00009.safetensors",
        ),
        *("transformer/diffusion_pytorch_model.safetensors.index.json", "image_encoder/model.safetensors"),
        *("text_encoder/model-00003-of-00005.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors"),
    }
    unwanted = {
        *(
            "README.md",
            "assets/demo.mp4",
            "text_encoder/pytorch_model.bin",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        ),
        *("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "vae/diffusion_pytorch_model.bin"),
    }
    kept = set(huggingface_hub.utils.filter_repo_objects(wanted | unwanted, allow_patterns=download_patterns()))
    assert kept == wanted


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "is gated: accept its terms on https://huggingface.co/org/name"),
        (errors.RepositoryNotFoundError, "not on the Hub (or private)"),
        (errors.RevisionNotFoundError, "has no revision 'v1'"),
        (errors.LocalEntryNotFoundError, "could not be downloaded"),
        (OSError, "could not be downloaded and is not in the local cache: the server said no"),
        (RuntimeError, "could not be downloaded"),
    ],
)
def test_each_failure_of_a_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], words: str
) -> None:
    fail_with(monkeypatch, hub_error(kind))
    text = error("org/name@v1", offline=False)
    assert words in text and "\n" not in text


def test_interrupting_a_download_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(KeyboardInterrupt):
        resolve("org/name", offline=False)


def test_a_base_is_refused_for_a_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(CheckpointError, match="so base='glimt-world' has no use"):
        open_model(tmp_path, base="glimt-world")


def test_where_a_model_would_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_bundled_folder", lambda: None)
    assert whereabouts("Wan-AI/any") == "hub"
    (tmp_path / "hub" / "models--Wan-AI--any" / "snapshots").mkdir(parents=True)
    assert whereabouts("Wan-AI/any") == whereabouts("Wan-AI/any@main") == "downloaded"
    assert whereabouts(str(tmp_path)) == "disk"
    assert {whereabouts(name) for name in ("glimt-world", "wan", str(tmp_path / "no"))} == {"nowhere"}


def misshape(file: Path, **tensors: torch.Tensor) -> None:
    state = load_file(file)
    save_file({**state, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}, file)


def test_tensors_that_do_not_fit_are_named_for_all_components_when_a_model_is_opened(tmp_path: Path) -> None:
    root = tiny.write_checkpoint(tmp_path / "tiny", image=True)
    misshape(root / "transformer" / "diffusion_pytorch_model.safetensors", proj_out__bias=torch.zeros(3))
    misshape(root / "vae" / "diffusion_pytorch_model.safetensors", surprise=torch.zeros(1))
    misshape(root / "image_encoder" / "model.safetensors", surprise=torch.zeros(1))
    state = load_file(root / "text_encoder" / "model.safetensors")
    del state["encoder.final_layer_norm.weight"]
    save_file(state, root / "text_encoder" / "model.safetensors")
    (root / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        open_model(root)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    assert f"transformer ({root / 'transformer'}): tensor 'proj_out.bias' has shape [3] in the file" in text
    assert f"vae ({root / 'vae'}): tensor 'surprise' is extra" in text
    assert f"image_encoder ({root / 'image_encoder'}): tensor 'surprise' is extra" in text
    assert "tensor 'encoder.final_layer_norm.weight' is missing" in text
    assert "scheduler_config.json: corrupted JSON" in text


def test_a_broken_transformer_file_and_a_broken_base_are_one_error(tmp_path: Path) -> None:
    root = tiny.write_checkpoint(tmp_path / "tiny")
    misshape(root / "vae" / "diffusion_pytorch_model.safetensors", surprise=torch.zeros(1))
    state = tiny.transformer(num_attention_heads=1, attention_head_dim=128).state_dict()
    save_file({**state, "proj_out.bias": torch.zeros(3)}, tmp_path / "wan.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path / "wan.safetensors", base=root)
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == ["transformer", "vae"]


def test_a_damaged_number_of_layers_is_refused_at_once(tmp_path: Path) -> None:
    root = tiny.write_checkpoint(tmp_path / "tiny")
    for part, key in (("transformer", "num_layers"), ("text_encoder", "num_layers"), ("vae", "num_res_blocks")):
        file = root / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: 10**9}))
    with pytest.raises(CheckpointError) as caught:
        open_model(root)
    assert len(caught.value.problems) == 3
    assert all("= 1000000000, its files hold" in problem for problem in caught.value.problems)


def test_opening_reads_headers_and_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny.write_checkpoint(tmp_path / "tiny", image=True)
    monkeypatch.setattr(MappedTensors, "tensor", lambda *_: pytest.fail("a tensor was read"))
    assert open_model(root).component("vae").entries


def test_what_a_model_was_called_is_kept_and_opens_the_same_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repo = cache / "models--org--name"
    root = tiny.write_checkpoint(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(commit)
    folder = open_model("org/name@v1", offline=True)
    assert (folder.name, folder.origin) == ("org/name", Origin("org/name@v1", commit))
    (repo / "refs" / "v1").unlink()  # a branch moves on, a commit stays
    assert resolve(folder.origin.again(), offline=True) == root
    monkeypatch.chdir(root.parent)
    (tmp_path / "mine").mkdir()
    state = tiny.transformer(num_attention_heads=1, attention_head_dim=128).state_dict()
    save_file(state, tmp_path / "mine/wan.safetensors")
    lone = open_model(f"{tmp_path}/mine/wan.safetensors", base=commit).origin
    assert lone == Origin(f"{tmp_path}/mine/wan.safetensors", base=Origin(commit))
    assert Origin.from_dict({"name": "wan", **lone.to_dict()}) == lone


def test_a_recorded_path_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file or folder" in error(Origin("models/tiny").again())
    assert Origin("glimt-world").again() == "glimt-world"

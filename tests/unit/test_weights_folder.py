"""A Diffusers folder is read whole and strictly, and every component has the tensors its own library saved."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from threading import Event

import pytest
import torch
import weights_checkpoint as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from glimt.errors import CheckpointError
from glimt.weights import digest
from glimt.weights.folder import CheckpointFolder, read_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-i2v", image=True)


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def problems(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_folder(root)
    return "\n".join(caught.value.problems)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def same_tensors(module: nn.Module, oracle: nn.Module) -> None:
    state, expected = module.state_dict(), oracle.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@torch.no_grad()
def test_components_are_what_their_libraries_saved(written: Path) -> None:
    folder = read_folder(written)
    assert "transformer_2" not in folder.components
    same_tensors(folder.load_component("transformer"), tiny.transformer(**tiny.IMAGE_BRANCH))
    same_tensors(folder.load_component("vae"), tiny.vae())
    text, oracle = folder.load_component("text_encoder"), tiny.text_encoder().eval()
    same_tensors(text, oracle)
    assert text.shared.weight is text.encoder.embed_tokens.weight
    ids = torch.arange(12).view(2, 6)
    assert torch.allclose(text(ids), oracle(ids).last_hidden_state, atol=1e-5)
    image, oracle = folder.load_component("image_encoder"), tiny.image_encoder().eval()
    same_tensors(image, oracle)
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(image(pixels).last_hidden_state, oracle(pixels).last_hidden_state)
    assert not any(module.training for module in (*text.modules(), *image.modules()))


def test_clip_loads_with_and_without_the_vision_model_prefix(root: Path) -> None:
    file = root / "image_encoder" / "model.safetensors"
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in load_file(file).items()}
    extra = {
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "visual_projection.weight": torch.ones(2, 24),
    }
    for state in (bare, {f"vision_model.{name}": tensor for name, tensor in bare.items()} | extra):
        save_file(state, file)
        same_tensors(read_folder(root).load_component("image_encoder"), tiny.image_encoder())


def test_dtype_policy_keeps_in_float32_what_diffusers_keeps(written: Path) -> None:
    from diffusers import WanTransformer3DModel

    ours = read_folder(written).load_component("transformer", dtype=torch.bfloat16).state_dict()
    theirs = WanTransformer3DModel.from_pretrained(written / "transformer", torch_dtype=torch.bfloat16).state_dict()
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    half = read_folder(written).load_component("text_encoder", dtype=torch.float16).state_dict()
    assert {tensor.dtype for name, tensor in half.items() if ".wo." in name} == {torch.float32}
    assert {tensor.dtype for name, tensor in half.items() if ".wo." not in name} == {torch.float16}


def test_sharded_components_load_as_whole_ones(root: Path) -> None:
    shutil.rmtree(root / "transformer")
    tiny.transformer(**tiny.IMAGE_BRANCH).save_pretrained(root / "transformer", max_shard_size="30KB")
    assert len(list((root / "transformer").glob("*.safetensors"))) > 2
    same_tensors(read_folder(root).load_component("transformer"), tiny.transformer(**tiny.IMAGE_BRANCH))


def test_the_card_says_what_the_configs_say(written: Path) -> None:
    card = read_folder(written).card()
    assert (card.name, card.variant, card.z_dim, card.shift, card.solver) == ("tiny-i2v", "i2v", 4, 3.0, "unipc")


def test_everything_wrong_is_in_one_error(root: Path) -> None:
    edit(root / "model_index.json", _class_name="WanPipelin", vea=["diffusers", "X"], tokenizer=["transformers"])
    (root / "vae" / "config.json").write_text('{"z_dim": ')
    edit(root / "transformer" / "config.json", num_layer=3)
    shutil.rmtree(root / "scheduler")
    file = root / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    (root / "image_encoder" / "model.safetensors").rename(root / "image_encoder" / "pytorch_model.bin")
    text = problems(root)
    for words in (
        "'WanPipelin' is not supported",
        "did you mean 'WanPipeline'",
        "unknown component 'vea'; did you mean 'vae'",
        "'tokenizer' should be [library, class]",
        "vae/config.json: corrupted JSON",
        "unknown key 'num_layer'",
        f"whose folder {root / 'scheduler'} is missing",
        "text_encoder/model.safetensors: truncated",
        "image_encoder: no model.safetensors",
    ):
        assert words in text


def test_classes_that_cannot_be_run_are_refused_by_name(root: Path) -> None:
    edit(root / "model_index.json", transformer=["diffusers", "WanVACETransformer3DModel"], vae=[None, None])
    edit(root / "scheduler" / "scheduler_config.json", _class_name="UniPCMultistepSchedule")
    text = problems(root)
    assert "'WanVACETransformer3DModel' is not supported, only WanTransformer3DModel; did you mean" in text
    assert "'vae' is null, and is needed" in text
    assert "did you mean 'UniPCMultistepScheduler'" in text


def test_components_that_others_need_are_missed(root: Path) -> None:
    edit(root / "model_index.json", image_encoder=[None, None], boundary_ratio=0.9)
    text = problems(root)
    assert "'image_encoder' is null or absent, and is needed because the transformer has an image branch" in text
    assert "'transformer_2' is null or absent, and is needed because boundary_ratio is 0.9" in text
    assert "image_processor" not in text
    edit(root / "text_encoder" / "config.json", d_model=-1)
    assert "text_encoder/config.json: UMT5 config: d_model must be a positive number" in problems(root)


def test_a_folder_without_an_index_is_described(root: Path, tmp_path: Path) -> None:
    assert "one component of a checkpoint; give its parent folder" in problems(root / "vae")
    assert "but in 'copy' below it" in problems(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in problems(tmp_path / "empty")
    (tmp_path / "empty" / "wan.safetensors").touch()
    assert "only wan.safetensors; a single weights file is given by its own path" in problems(tmp_path / "empty")
    assert "no such folder" in problems(tmp_path / "nowhere")


def test_tensors_that_do_not_fit_are_all_named(root: Path) -> None:
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["blocks.0.attn1.to_kk.weight"] = state.pop("blocks.0.attn1.to_k.weight")
    state["proj_out.bias"] = torch.zeros(3)
    state["blocks.1.attn2.norm_added_q.weight"] = torch.zeros(3)  # in Diffusers' own files, and read by nobody
    save_file(state, file)
    with pytest.raises(CheckpointError) as caught:
        read_folder(root)
    assert len(caught.value.problems) == 3
    assert "'blocks.0.attn1.to_k.weight' is missing; did you mean 'blocks.0.attn1.to_kk.weight'" in str(caught.value)
    assert "'proj_out.bias' has shape [3] in the file, [16] in the model" in str(caught.value)


def test_pickles_load_only_when_asked_for(root: Path) -> None:
    file = root / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), root / "vae" / "diffusion_pytorch_model.bin")
    file.unlink()
    assert "holds only pickles (diffusion_pytorch_model.bin)" in problems(root)
    folder = read_folder(root, allow_pickle=True)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        folder.load_component("vae")
    same_tensors(folder.load_component("vae", allow_pickle=True), tiny.vae())
    assert len(folder.digest()) == 64


def test_components_are_named_when_absent(written: Path) -> None:
    folder = read_folder(written)
    with pytest.raises(CheckpointError, match=r"has no 'transformer_3', only .* did you mean 'transformer'"):
        folder.load_component("transformer_3")
    with pytest.raises(CheckpointError, match="'T5TokenizerFast' has no weights to load"):
        folder.load_component("tokenizer")


def test_digest_follows_the_weights_and_not_how_they_are_stored(root: Path) -> None:
    before = read_folder(root).digest()
    assert before == read_folder(root).digest()
    shutil.rmtree(root / "transformer")
    tiny.transformer(**tiny.IMAGE_BRANCH).save_pretrained(root / "transformer", max_shard_size="30KB")
    assert read_folder(root).digest() == before
    file = root / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    changed = read_folder(root).digest()
    assert changed != before
    edit(root / "vae" / "config.json", clip_output=False)
    assert read_folder(root).digest() not in (before, changed)


def test_digest_reads_a_file_once_until_it_changes(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = read_folder(written).component("vae")
    first = component.digest()
    monkeypatch.setattr(digest, "_hash_span", lambda *_: pytest.fail("read again"))
    assert component.digest() == first


def test_an_interrupted_digest_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-C: one part has an exception, the others stop within a chunk and none of the rest begins."""
    files = [tmp_path / f"{n}.bin" for n in range(20)]
    for file in files:
        file.write_bytes(bytes(100))
    file_reads: list[int] = []

    class Slow:
        def __init__(self, *_: object) -> None: ...
        def update(self, data: memoryview) -> None:
            file_reads.append(len(data))
            time.sleep(0.05)

    whole = digest._hash_span

    def interrupted(stop: Event, span: tuple[Path, int, int]) -> str:
        if span[0] == files[0]:
            raise KeyboardInterrupt
        return whole(stop, span)

    monkeypatch.setattr(digest, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(digest, "_hash_span", interrupted)
    monkeypatch.setattr(digest.hashlib, "sha256", Slow)
    with pytest.raises(KeyboardInterrupt):
        digest.files_digest(files)
    assert len(file_reads) < 20


def test_sizes_are_known_before_loading(written: Path) -> None:
    component = read_folder(written).component("transformer")
    oracle = tiny.transformer(**tiny.IMAGE_BRANCH)
    assert component.num_parameters == sum(p.numel() for p in oracle.parameters())
    assert component.num_bytes == 4 * component.num_parameters


CONFIGS = (
    "model_index.json",
    "text_encoder/config.json",
    "transformer/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)
VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.lists(st.integers(-1, 3), max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(CONFIGS), st.data())
def test_mutated_configs_give_a_checkpoint_error_or_a_checkpoint(written: Path, name: str, data: st.DataObject) -> None:
    file = written / name
    original = file.read_bytes()
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(original) - 1))
        mutated = original[:place] + data.draw(st.binary(max_size=2)) + original[place + data.draw(st.integers(0, 3)) :]
    else:
        table = json.loads(original)
        table[data.draw(st.sampled_from(sorted(table)) | st.text(max_size=4))] = data.draw(VALUES)
        mutated = json.dumps(table).encode()
    try:
        file.write_bytes(mutated)
        folder = read_folder(written)
        assert isinstance(folder, CheckpointFolder)
        if name.startswith("vae"):
            folder.load_component("vae")
        folder.card()
    except CheckpointError as error:
        assert error.problems
    finally:
        file.write_bytes(original)

"""The transformer against Diffusers' on the same random weights, and against itself where two ways must agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.rope import axis_dims, rope_tables, rotate
from glimt.models.wan.transformer import FoldedText, WanTransformer, fold_padding, keeps_fp32
from glimt_kernels import dispatch, references_only
from models import tiny

VARIANTS = ("t2v", "i2v", "flf2v", "i2v-a14b", "ti2v")
TOLERANCE = 1e-5


def ours(reference: Any) -> WanTransformer:
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in reference.config.items()}
    model = WanTransformer(WanTransformerConfig.from_dict(config))
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.eval()


def inputs(variant: str, frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(frames)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latents = draw(batch, tiny.transformer_config(variant)["in_channels"], frames, 6, 10)
    text = draw(batch, 512, tiny.TEXT_DIM)  # Diffusers finds the image tokens by counting 512 text tokens
    text[0, 9:], text[-1, 4:] = 0, 0
    image = None
    if variant in ("i2v", "flf2v"):
        image = draw(batch * (2 if variant == "flf2v" else 1), tiny.IMAGE_TOKENS, tiny.IMAGE_DIM)
    return latents, torch.tensor([999.0, 371.5][:batch]), text, image


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_forward_equals_diffusers(variant: str, frames: int) -> None:
    reference = tiny.transformer(variant)
    model = ours(reference)
    latents, timestep, text, image = inputs(variant, frames)
    expected = reference(latents, timestep, text, image, return_dict=False)[0]
    assert tiny.relative_error(model(latents, timestep, text, image), expected) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_what_is_prepared_once_per_request_changes_nothing(variant: str) -> None:
    model = ours(tiny.transformer(variant))
    latents, timestep, text, image = inputs(variant, 3)
    plain = model(latents, timestep, text, image)
    context = model.prepare_text(fold_padding(text), image)
    schedule = model.prepare_time(torch.tensor([1000.0, 999.0, 371.5]))
    rope = rope_tables(model.config.attention_head_dim, model.grid(latents))
    prepared = model(latents, schedule.at(torch.tensor([[1], [2]])), context, rope=rope)
    assert tiny.relative_error(prepared, plain) <= 1e-6


@torch.no_grad()
def test_timesteps_per_token_equal_diffusers_and_timesteps_per_frame() -> None:
    reference = tiny.transformer("ti2v")
    model = ours(reference)
    latents, _, text, _ = inputs("ti2v", 4)
    frames = torch.tensor([[0.0, 700.0, 700.0, 12.5], [0.0, 0.0, 300.0, 1000.0]])
    tokens = frames.repeat_interleave(3 * 5, dim=1)
    expected = reference(latents, tokens, text, return_dict=False)[0]
    assert tiny.relative_error(model(latents, tokens, text), expected) <= TOLERANCE
    assert tiny.relative_error(model(latents, frames, text), expected) <= TOLERANCE
    same = torch.full((2, 60), 371.5)
    per_token, shared = model(latents, same, text), model(latents, same[:, 0], text)
    assert tiny.relative_error(per_token, shared) <= 1e-6


@torch.no_grad()
def test_prompts_that_share_latents_share_work_and_nothing_else() -> None:
    model = ours(tiny.transformer("i2v"))
    latents, timestep, text, image = inputs("i2v", 3)
    together = model(latents[:1], timestep[:1], model.prepare_text(text, image))
    for row in (0, 1):
        alone = model(latents[:1], timestep[:1], text[row : row + 1], image[row : row + 1])
        assert tiny.relative_error(together[row : row + 1], alone) <= 1e-6


@pytest.mark.parametrize("cross_attn_norm", [True, False])
def test_gradients_equal_those_of_diffusers(cross_attn_norm: bool) -> None:
    reference = tiny.transformer("t2v", cross_attn_norm=cross_attn_norm)
    model = ours(reference)
    latents, timestep, text, _ = inputs("t2v", 2)
    reference(latents, timestep, text, return_dict=False)[0].square().mean().backward()
    model(latents, timestep, text).square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        scale = expected[name].grad.norm()
        assert (parameter.grad - expected[name].grad).norm() <= 1e-4 * scale + 1e-7, name


def test_training_under_autocast_is_near_float32() -> None:
    model = ours(tiny.transformer("ti2v")).train()
    latents, _, text, _ = inputs("ti2v", 3)
    timestep = torch.tensor([[0.0, 500.0, 900.0], [10.0, 20.0, 30.0]])
    exact = model(latents, timestep, fold_padding(text))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(latents, timestep, fold_padding(text))
    assert tiny.relative_error(rough, exact) < 0.05
    rough.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_diffusers_is() -> None:
    reference = tiny.transformer("t2v")
    latents, timestep, text, _ = inputs("t2v", 3)
    exact = reference(latents, timestep, text, return_dict=False)[0]
    half = ours(reference)
    for model in (reference, half):
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data if keeps_fp32(name) else parameter.data.bfloat16()
    theirs = reference(latents.bfloat16(), timestep, text.bfloat16(), return_dict=False)[0]
    found = half(latents, timestep, text)
    assert found.dtype == torch.bfloat16
    assert tiny.relative_error(found, exact) <= 1.2 * tiny.relative_error(theirs, exact)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["t2v", "i2v"])
def test_weights_that_lie_together_are_one_product_and_the_same_checkpoint(variant: str) -> None:
    model, plain = ours(tiny.transformer(variant)), ours(tiny.transformer(variant))
    latents, timestep, text, image = inputs(variant, 3)
    model.fuse()
    for (name, mine), (other, theirs) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other and torch.equal(mine, theirs)
    stores = [parameter.untyped_storage().nbytes() for parameter in model.blocks[0].attn1.to_v.parameters()]
    assert stores == [3 * parameter.nbytes for parameter in model.blocks[0].attn1.to_v.parameters()]
    found, expected = (m(latents, timestep, text, image) for m in (model, plain))
    assert tiny.relative_error(found, expected) <= 1e-6
    model.load_state_dict(ours(tiny.transformer(variant, seed=5)).state_dict(), strict=True)
    changed = model(latents, timestep, text, image)
    expected = ours(tiny.transformer(variant, seed=5))(latents, timestep, text, image)
    assert tiny.relative_error(changed, expected) <= 1e-6
    attention = model.blocks[0].attn1
    assert products(lambda: attention.project(torch.randn(1, 2, model.config.width))) == 1
    assert products(lambda: copy.deepcopy(attention).project(torch.randn(1, 2, model.config.width))) == 3


def products(run: Callable[[], Any]) -> int:
    """How many products of ours ``run`` asks for."""
    found = []
    select = dispatch.select

    def spy(op: str, *rest: Any) -> Any:
        found.append(op)
        return select(op, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "select", spy)
        run()
    return found.count("linear")


@pytest.mark.parametrize("variant", ["i2v", "ti2v"])
@torch.no_grad()
def test_every_op_by_triton_is_the_transformer_of_diffusers(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that a GPU runs, interpreted: text and image, timesteps per sample and per frame, two prompts."""
    for op in ("ada_norm", "attention", "layer_norm", "linear", "qk_norm_rope", "rms_norm"):
        monkeypatch.setenv(f"GLIMT_IMPL_{op.upper()}", "triton")
    reference = tiny.transformer(variant)
    model = ours(reference)
    model.fuse()
    latents, timestep, text, image = inputs(variant, 2)
    if variant == "ti2v":
        timestep = torch.tensor([[0.0, 700.0]])
    tokens = timestep if variant == "i2v" else timestep.repeat_interleave(3 * 5, dim=1).expand(2, -1)
    latents = latents[:1].expand_as(latents)
    expected = reference(latents, tokens[:1].expand(2, *tokens.shape[1:]), text, image, return_dict=False)[0]
    schedule = model.prepare_time(timestep.flatten()[:2])
    index = torch.tensor([[0]]) if variant == "i2v" else torch.tensor([[0, 1]])
    found = model(latents[:1], schedule.at(index), model.prepare_text(fold_padding(text), image))
    assert tiny.relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_exact_runs_are_the_plain_form_and_others_are_beside_it(dtype: torch.dtype) -> None:
    model = ours(tiny.transformer("t2v"))
    latents, timestep, text, _ = inputs("t2v", 3)
    wide = model(latents, timestep, text)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if keeps_fp32(name) else parameter.data.to(dtype)
    with references_only():
        exact = model(latents, timestep, text)
        assert products(lambda: model(latents, timestep, text)) == 0
    with torch.enable_grad():
        assert torch.equal(exact, model(latents, timestep, text))
    fused = model(latents, timestep, text)
    errors = [tiny.relative_error(found, wide) for found in (fused, exact)]
    assert errors[0] <= 1.2 * errors[1] + 1e-6
    assert torch.equal(fused, model(latents, timestep, text))


@torch.inference_mode()
def test_requests_in_turns_get_the_bits_that_each_gets_alone() -> None:
    model = ours(tiny.transformer("t2v"))
    asked = [inputs("t2v", frames, batch=1) for frames in (2, 3)]
    ready = [
        (x, model.prepare_time(t).at(torch.zeros(1, 1, dtype=torch.long)), model.prepare_text(fold_padding(text)))
        for x, t, text, _ in asked
    ]
    alone = [[model(*args) for _ in range(3)] for args in ready]
    turns = [[model(*args) for args in ready] for _ in range(3)]
    for i, results in enumerate(alone):
        assert all(torch.equal(result, turn[i]) for result, turn in zip(results, turns, strict=True))


def test_the_same_tensors_stay_float32_as_in_diffusers(tmp_path: Any) -> None:
    from diffusers import WanTransformer3DModel

    tiny.transformer("i2v").save_pretrained(tmp_path)
    half = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert (parameter.dtype == torch.float32) == keeps_fp32(name), name


def test_folded_padding_attends_as_all_of_it_would() -> None:
    text = torch.randn(3, 12, 4)
    text[0, 5:], text[1, 2:] = 0, 0  # the third is full
    folded = fold_padding(text)
    assert folded.tokens.shape[1] == 12
    folded = fold_padding(text[:2])
    assert isinstance(folded, FoldedText) and folded.tokens.shape == (2, 6, 4)
    query = torch.randn(2, 1, 4)
    whole = torch.softmax(query @ text[:2].mT, -1) @ (text[:2] + 1)
    logits = query @ folded.tokens.mT + folded.bias[:, None]
    assert tiny.relative_error(torch.softmax(logits, -1) @ (folded.tokens + 1), whole) <= 1e-6


def test_rotation_depends_on_the_distance_of_positions_only() -> None:
    assert axis_dims(128) == (44, 42, 42) and axis_dims(14) == (6, 4, 4)
    tables = rope_tables(14, (6, 3, 4))
    q, k = torch.randn(1, 1, 1, 14, dtype=torch.float32), torch.randn(1, 1, 1, 14)
    turned_q, turned_k = (rotate(x.expand(1, 72, 1, 14), tables)[0, :, 0] for x in (q, k))
    products = (turned_q @ turned_k.T).view(6, 3, 4, 6, 3, 4)
    assert torch.allclose(products[4, 1, 3, 2, 0, 1], products[3, 2, 2, 1, 1, 0], atol=1e-5)
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(72), atol=1e-5)

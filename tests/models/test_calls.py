"""What is said to be called is what is called: observed on meta tensors, where nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from glimt.config import EngineConfig
from glimt.images import ImagePixels
from glimt.models.umt5 import Umt5Config, Umt5Encoder
from glimt.models.wan.calls import EightBit, Job, KernelCall, text_encoder_calls, transformer_calls
from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.context import FoldedText
from glimt.models.wan.transformer import WanTransformer, keeps_fp32
from glimt.plan import Planner
from glimt.plan.calls import model_calls, network_calls, pixel_calls
from glimt.request import GenerateRequest
from glimt.sampling.guidance import StepGuidance
from glimt.weights.folder import read_folder
from glimt_kernels import dispatch, tuned
from glimt_kernels.attention_8bit.api import preferred
from models import tiny

CPU = torch.device("cpu")
GRID = (3, 2, 5)
TEXT, STEPS = 7, 4


def observed(run: Callable[[], object]) -> list[KernelCall]:
    """The calls of ops that ``run`` makes."""
    found = []
    call = dispatch.Op.__call__

    def spy(op: dispatch.Op, *args: Any, impl: str | None = None) -> Any:
        found.append(KernelCall(op.name, args))
        return call(op, *args, impl=impl)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(dispatch.Op, "__call__", spy)
        run()
    return found


@torch.no_grad()
def known_by(calls: Iterable[KernelCall]) -> set[tuple[str, dispatch.Case]]:
    """All that a choice depends on."""
    return {(tuned.key(op, args), dispatch.find(op).case(args)) for op, args in calls}


@pytest.mark.parametrize("eight_bit", ["", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize(
    ("variant", "groups", "grid"),
    [("t2v", 1, GRID), ("i2v", 1, GRID), ("flf2v", 1, GRID), ("ti2v", 3, GRID), ("ti2v", 3, (3, 1, 1))],
)
def test_the_calls_of_a_transformer(
    variant: str, groups: int, grid: tuple[int, int, int], prompts: int, dtype: torch.dtype, eight_bit: str
) -> None:
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in tiny.transformer_config(variant).items()}
    config = WanTransformerConfig.from_dict(values)
    with torch.device("meta"):
        model = WanTransformer(config)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data if keeps_fp32(name) else parameter.data.to(dtype)
        model.quantize(eight_bit) if eight_bit else model.fuse()
        text = FoldedText(torch.empty(prompts, TEXT, config.text_dim, dtype=dtype), torch.empty(prompts, TEXT))
        pictures = 2 if variant == "flf2v" else 1
        image = torch.empty(prompts * pictures, tiny.IMAGE_TOKENS, config.image_dim) if config.image_dim else None
        latents = torch.empty(1, config.in_channels, *(n * p for n, p in zip(grid, config.patch_size, strict=True)))

        def run() -> None:
            time = model.prepare_time(torch.empty(STEPS))
            index = torch.zeros(1, groups, dtype=torch.long)
            model(latents, time.at(index), model.prepare_text(text, image))

        made = observed(run)
    images = 0 if image is None else pictures * tiny.IMAGE_TOKENS
    formats = EightBit(eight_bit, *preferred(0, dtype)) if eight_bit else None
    job = Job(grid, groups, STEPS, prompts, TEXT, images, dtype, together=True, eight_bit=formats)
    assert known_by(transformer_calls(config, job)) == known_by(made)
    assert len(made) > 3 * len(list(transformer_calls(config, job))) / 2, "what every block repeats is said once"


@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v", "ti2v"])
def test_tuning_covers_the_calls_of_every_request_of_the_models_own_size(variant: str) -> None:
    """Short and long prompts, with guidance and without, with an image and without one where there need be none."""
    made = Planner.of(read_folder(tiny.folder(variant)), EngineConfig(device="cpu"))
    covered = {tuned.key(op, args) for op, args in model_calls(made, torch.float32, CPU)}
    image = ImagePixels(2, 2, b"\x00" * 12)
    needed = {"i2v": {"image": image}, "flf2v": {"image": image, "last_image": image}}.get(variant, {})
    for pictures in (needed, {"image": image}) if variant == "ti2v" else (needed,):
        for prompt, scale in (("a", 1.0), ("a", 5.0), ("a red ball " * 9, 5.0), ("a " * 600, 5.0)):
            asked = GenerateRequest(prompt, guidance_scale=scale, **pictures).resolve(made.card)
            texts = {name: made.folder.tokenizer(getattr(asked, name)) for name in ("prompt", "negative_prompt")}
            texts = texts if scale > 1 else {"prompt": texts["prompt"]}
            guidance = (StepGuidance(0, scale if scale > 1 else None),) * asked.num_inference_steps
            images = made.tokens_of_image * len(pictures)
            calls = [*network_calls(made, asked, guidance, texts, images), *pixel_calls(made, asked.pixel_grid())]
            assert {tuned.key(op, args) for op, args in calls} <= covered
    assert {key.split(" ")[0] for key in covered} <= set(dispatch.op_names())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_calls_of_a_text_encoder(dtype: torch.dtype) -> None:
    config = {"d_model": 24, "d_kv": 7, "d_ff": 40, "num_heads": 3, "num_layers": 2, "vocab_size": 30}
    with torch.device("meta"):
        model = Umt5Encoder(Umt5Config(**config))
        for name, parameter in model.named_parameters():
            wide = dtype == torch.float16 and ".wo." in name
            parameter.data = parameter.data if wide else parameter.data.to(dtype)
        made = observed(lambda: model(torch.zeros(1, 9, dtype=torch.long)))
    assert known_by(text_encoder_calls(config, 9, dtype)) == known_by(made)

"""What is typed becomes exactly the engine's words, or one message with every mistake and the names near it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.cli import main, parser, values
from glimt.cli.asking import engine_config, generate_request
from glimt.config import EngineConfig
from glimt.errors import RequestError
from glimt.request import GenerateRequest


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(parser.UsageError) as caught:
        parser.parse(words)
    return caught.value.problems


def test_every_option_reaches_its_field():
    words = "--size 832x480 --frames 33 --fps 24000/1001 --steps 20 --guidance 4.5 --guidance-2 3 --seed 7 --variants 2"
    words += " --solver euler --shift 3 --image a.png --last-image b.png --device cpu --dtype float32 --quality exact"
    words += " --memory-budget 4GiB --offline --strict --allow-pickle -o o.mp4"
    words += " --tiny-decoder t.safetensors --decoder tiny --preview linear --backend eager --engines e"
    typed = words.split()
    namespace = parser.parse(["generate", "a red ball", "--negative", "blur, text", *typed])
    assert generate_request(namespace, preview_every=3) == GenerateRequest(
        prompt="a red ball",
        negative_prompt="blur, text",
        width=832,
        height=480,
        num_frames=33,
        fps=24000 / 1001,
        num_inference_steps=20,
        guidance_scale=4.5,
        guidance_scale_2=3.0,
        seed=7,
        num_videos_per_prompt=2,
        solver="euler",
        shift=3.0,
        image="a.png",
        last_image="b.png",
        preview_every=3,
        preview="linear",
        decoder="tiny",
    )
    assert engine_config(namespace) == EngineConfig(
        device="cpu",
        dtype="float32",
        quality="exact",
        memory_budget_bytes=2**32,
        offline=True,
        strict=True,
        allow_pickle=True,
        tiny_decoder="t.safetensors",
        backend="eager",
        engines="e",
    )


def test_what_is_not_typed_is_left_to_the_model_and_to_the_defaults():
    namespace = parser.parse(["plan", "a red ball"])
    assert generate_request(namespace) == GenerateRequest(prompt="a red ball")
    assert engine_config(namespace) == EngineConfig()
    assert namespace.model == "glimt-world"


def test_a_reproduction_runs_as_recorded_unless_told_otherwise():
    recorded = {"device": "cpu", "dtype": "float32", "strict": True}
    config = engine_config(parser.parse(["reproduce", "a.mp4", "--dtype", "bfloat16"]), recorded)
    assert config == EngineConfig(device="cpu", dtype="bfloat16", strict=True)


def test_all_mistakes_are_named_at_once():
    found = problems(
        "generate", "--stepps=3", "--size", "big", "--frames", "1.5", "--guidance", "4,5", "--memory-budget", "much"
    )
    text = "\n".join(found)
    assert len(found) == 7
    assert "--stepps: no such option; did you mean '--steps'" in text
    assert all(name in text for name in ("--size: 'big'", "--frames: '1.5'", "decimal point as '.'", "--memory-budget"))
    assert "prompt is missing" in text
    assert "-o out.mp4" in text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--negativ", "--negative"), ("--num-frames", "--frames"), ("--outptu=x", "--output"), ("--Seed", "--seed")],
)
def test_an_unknown_option_comes_with_the_names_near_it(typed, meant):
    (found,) = problems("generate", "a ball", "-o", "a.mp4", typed, "value")[:1]
    assert meant in found


def test_abbreviations_are_not_guessed():
    assert "no such option" in problems("generate", "x", "-o", "a.mp4", "--neg", "blur")[0]


def test_values_may_have_a_minus_sign_and_are_refused_by_what_they_are():
    words = ["--size", "-96x96", "--frames", "-5", "--fps", "-24000/1001", "--guidance", "-.5", "--steps", "-1"]
    asked = generate_request(parser.parse(["plan", "a ball", *words]))
    assert (asked.width, asked.height, asked.num_frames, asked.num_inference_steps) == (-96, 96, -5, -1)
    assert "is not an amount of memory" in problems("plan", "a ball", "--memory-budget", "-4GiB")[0]
    assert "stands alone" in problems("plan", "a ball", "-96x96")[0]
    assert "no such option" in problems("plan", "a ball", "-x96")[0]


def test_unknown_commands_and_words_too_many():
    assert "did you mean 'generate'" in problems("genrate", "x")[0]
    assert "no command" in problems()[0]
    assert "in quotes" in problems("generate", "a", "red", "ball", "-o", "a.mp4")[0]
    assert "expected one argument" in problems("generate", "a", "-o")[0]


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from(["x", "X", "\u00d7", "*", " x "]))
def test_sizes(width, height, between):
    assert values.size(f"{width}{between}{height}") == (width, height)


@given(st.integers(0, 2**40))
def test_amounts_of_memory(amount):
    for unit, factor in [("", 1), ("B", 1), ("k", 2**10), ("KiB", 2**10), ("KB", 1000), ("GiB", 2**30), ("mb", 10**6)]:
        assert values.byte_count(f"{amount}{unit}") == amount * factor
    assert values.byte_count("1.5GiB") == 3 * 2**29


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_and_never_breaks_anything(text):
    for convert in (values.size, values.byte_count, values.whole_number, values.number, values.frame_rate, values.seed):
        result = values.lenient(convert)(text)
        assert isinstance(result, (values.Invalid, int, float, tuple))


def test_a_random_seed_is_a_seed():
    assert 0 <= values.seed("random") < values.MAX_RANDOM_SEED
    assert values.seed("random") != values.seed("random") or values.seed("random") != values.seed("random")


def test_bad_settings_are_problems_too():
    with pytest.raises(RequestError, match="device"):
        engine_config(parser.parse(["plan", "x", "--device", "cupid"]))


def test_problems_of_all_kinds_come_in_the_words_of_the_command_line(capsys, tmp_path):
    words = [
        "generate",
        "x",
        "-o",
        str(tmp_path / "no" / "a.mp4"),
        "--dtype",
        "float8",
        "--memory-budget",
        "0",
        "--json",
    ]
    words += ["--webp", str(tmp_path / "a.gif"), "--preview-dir", str(tmp_path / "no" / "p"), "--crf", "99"]
    assert main(words) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    text = "\n".join(error["problems"])
    assert len(error["problems"]) == 6
    assert all(
        name in text for name in ("--dtype:", "--memory-budget:", "a.mp4", "a.gif", "--preview-dir", "--crf: 99")
    )
    assert "6 problems" in printed.err
    assert list(tmp_path.iterdir()) == []

"""Engine settings are checked whole, and unknown names are errors with near ones."""

import dataclasses

import pytest

from glimt.config import EngineConfig
from glimt.errors import RequestError
from glimt.request import GenerateRequest


def test_the_default_is_legal_and_round_trips() -> None:
    config = EngineConfig()
    assert EngineConfig.from_mapping(config.to_dict()) == config


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().device = "cpu"  # type: ignore[misc]


def test_an_unknown_name_is_an_error_with_near_names() -> None:
    with pytest.raises(RequestError, match="did you mean 'device'") as caught:
        EngineConfig.from_mapping({"devise": "cpu"})
    assert caught.value.fields == ("devise",)


def test_an_unknown_keyword_is_the_same_error_with_all_the_others() -> None:
    with pytest.raises(RequestError, match="did you mean 'device'") as caught:
        EngineConfig(devise="cpu", dtype="fp32")  # type: ignore[call-arg]
    assert caught.value.fields == ("devise", "dtype")
    with pytest.raises(RequestError, match="did you mean 'num_inference_steps'"):
        GenerateRequest("a ball", inference_steps=3)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="did you mean 'prompt'"):
        GenerateRequest(promt="a ball")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        GenerateRequest()  # type: ignore[call-arg]


def test_every_bad_value_is_reported_at_once() -> None:
    bad = {
        "device": "gpu",
        "dtype": "fp32",
        "backend": "tensor",
        "quality": "best",
        "memory_budget_bytes": 0,
        "strict": 1,
        "offline": "no",
        "allow_pickle": None,
        "tiny_decoder": "",
        "engines": 5,
        "nonsense": 1,
    }
    with pytest.raises(RequestError) as caught:
        EngineConfig.from_mapping(bad)
    assert set(caught.value.fields) == set(bad)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_legal_devices(device: str) -> None:
    assert EngineConfig(device=device).device == device


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "mps", "", "CPU", None, 0])
def test_illegal_devices(device: object) -> None:
    with pytest.raises(RequestError):
        EngineConfig(device=device)  # type: ignore[arg-type]


def test_override_checks_and_leaves_the_old_one_alone() -> None:
    config = EngineConfig()
    assert config.override(quality="exact").quality == "exact" and config.quality == "equivalent"
    with pytest.raises(RequestError, match="quality"):
        config.override(quality="superb")

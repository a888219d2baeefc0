"""A spec says everything that is wrong with it at once, by itself and against a model, with what would be right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt import CompileSpec
from glimt.compile.spec import TARGETS, Bucket, tokens
from glimt.errors import RequestError
from glimt.models.zoo import ModelCard

CARD = ModelCard(
    name="wan", variant="t2v", height=480, width=832, num_frames=81, fps=16.0, num_inference_steps=50,
    guidance_scale=5.0, guidance_scale_2=None, shift=3.0, solver="unipc", scale_factor_temporal=4,
    scale_factor_spatial=8, z_dim=16, patch=(1, 2, 2),
)  # fmt: skip
GOOD: dict[str, Any] = {"buckets": [(480, 832, 81)], "targets": ["sm_89"]}

BAD = {
    "no bucket": ({"buckets": []}, ["buckets"]),
    "two sizes": ({"buckets": [(480, 832)]}, ["buckets"]),
    "a text": ({"buckets": "832x480x81"}, ["buckets"]),
    "a size of nothing": ({"buckets": [(480, 832, 81), (480, 0, 81)]}, ["buckets"]),
    "truth for a number": ({"buckets": [(480, True, 81)]}, ["buckets"]),
    "no target": ({"targets": ()}, ["targets"]),
    "one text": ({"targets": "sm_89"}, ["targets"]),
    "a card that RTX has not": ({"targets": ["sm_90"]}, ["targets"]),
    "a backend that compiles when it runs": ({"backend": "inductor"}, ["backend"]),
    "a backend misspelt": ({"backend": "tensor-rtx"}, ["backend"]),
    "float32": ({"precision": "fp32"}, ["precision"]),
    "a word for guided": ({"guided": "yes"}, ["guided"]),
    "another name": ({"bucket": (480, 832, 81)}, ["bucket"]),
    "all at once": (
        {"buckets": [(480,)], "targets": ["89"], "precision": "bf61", "guided": 2},
        ["buckets", "targets", "precision", "guided"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_everything_that_is_wrong_is_named(case: str) -> None:
    changes, fields = BAD[case]
    with pytest.raises(RequestError) as caught:
        CompileSpec(**{**GOOD, **changes})
    assert list(caught.value.fields) == fields


@pytest.mark.parametrize(
    ("changes", "nearest"),
    [
        ({"targets": ["sm_90"]}, "'sm_89'"),
        ({"targets": ["sm_12"]}, "'sm_80'"),
        ({"precision": "bf61"}, "'bf16'"),
        ({"precision": "fp32"}, "'bf16'"),
        ({"backend": "tensor-rt-rtx"}, "'tensorrt-rtx'"),
        ({"backend": "inductor"}, "EngineConfig(backend='inductor')"),
    ],
)
def test_what_would_be_right_is_said(changes: dict[str, Any], nearest: str) -> None:
    with pytest.raises(RequestError, match=r".") as caught:
        CompileSpec(**{**GOOD, **changes})
    assert nearest in str(caught.value)


def test_a_model_names_every_size_that_it_has_not() -> None:
    spec = CompileSpec(buckets=[(480, 832, 82), (488, 832, 81), (8, 830, 81)], targets=["sm_89"])
    with pytest.raises(RequestError) as caught:
        spec.check(CARD)
    assert list(caught.value.problems) == [
        "buckets: 832x480x82: 82 frames are not 4 n + 1; nearest: 81 or 85",
        "buckets: 832x488x81: height 488 is not a multiple of 16; nearest: 480 or 496",
        "buckets: 830x8x81: height 8 is not a multiple of 16; nearest: 16",
        "buckets: 830x8x81: width 830 is not a multiple of 16; nearest: 816 or 832",
    ]


def test_fp16_is_refused_where_its_attention_overflows() -> None:
    small, large = (480, 832, 81), (720, 1280, 81)
    CompileSpec(buckets=[small], targets=["sm_89"], precision="fp16").check(CARD)
    CompileSpec(buckets=[large], targets=["sm_89"]).check(CARD)
    assert tokens(Bucket(*large), CARD).count == 75_600
    with pytest.raises(RequestError, match="1280x720x81 has 75600"):
        CompileSpec(buckets=[small, large], targets=["sm_89"], precision="fp16").check(CARD)


@given(
    st.lists(st.tuples(*[st.integers(1, 40)] * 3), min_size=1, max_size=5),
    st.sampled_from(sorted(TARGETS)),
    st.data(),
)
def test_a_size_that_is_said_to_be_nearest_is_one(
    sizes: list[tuple[int, ...]], backend: str, data: st.DataObject
) -> None:
    targets = data.draw(st.lists(st.sampled_from(TARGETS[backend]), min_size=1))
    spec = CompileSpec(buckets=sizes, targets=targets, backend=backend)
    assert len(set(spec.sizes)) == len(spec.sizes) == len(set(sizes))
    assert list(spec.targets) == list(dict.fromkeys(targets))
    try:
        spec.check(CARD)
    except RequestError as error:
        nearest = [problem.rsplit(" ", 1)[-1] for problem in error.problems]
        for problem, value in zip(error.problems, map(int, nearest), strict=True):
            axis = {"frames": 2, "height": 0, "width": 1}[problem.split()[3 if " frames " in problem else 2]]
            legal = [16, 16, 1]
            legal[axis] = value
            CompileSpec(buckets=[tuple(legal)], targets=targets, backend=backend).check(CARD)


def test_it_is_frozen_and_plain() -> None:
    spec = CompileSpec(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.precision = "fp16"  # type: ignore[misc]
    assert spec.to_dict() == {
        "buckets": ((480, 832, 81),), "targets": ("sm_89",), "backend": "tensorrt-rtx", "precision": "bf16",
        "guided": None,
    }  # fmt: skip
    assert str(spec.sizes[0]) == "832x480x81"

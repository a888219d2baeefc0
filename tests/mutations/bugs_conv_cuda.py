"""Bugs of the CUDA convolutions, which the tests compile for this processor and run there."""

from __future__ import annotations

from functools import partial

from plant import Mutation

WITHIN = "test_causal_conv3d_cuda.py::test_within_budget"
NOT_GIVEN = "test_causal_conv3d_cuda.py::test_what_is_not_given_is_not_done"
ampere = partial(Mutation, "causal_conv3d", "causal_conv3d/ampere.h")
hopper = partial(Mutation, "causal_conv3d", "causal_conv3d/hopper.h")
epilogue = partial(Mutation, "causal_conv3d", "causal_conv3d/epilogue.h")
geometry = partial(Mutation, "causal_conv3d", "causal_conv3d/geometry.h")
CONV_CUDA = [
    ampere(
        f"{WITHIN}[no history-ampere]",
        "a warp does not wait for what the others copy",
        "            ops::sync();",
        "            ",
    ),
    ampere(
        f"{WITHIN}[no history-ampere]",
        "a step's copies not waited for",
        "ops::wait_copies<kStages - 2>()",
        "ops::wait_copies<kStages - 1>()",
    ),
    ampere(
        f"{WITHIN}[no history-ampere]",
        "the next step copied over the one that is multiplied",
        "stage == 0 ? kStages - 1 : stage - 1",
        "stage",
    ),
    ampere(
        f"{WITHIN}[more than a tile-ampere]",
        "the second frame sees the first's",
        "sums[f] + n / 2 + 4, a[f + t]",
        "sums[f] + n / 2 + 4, a[t]",
    ),
    ampere(
        f"{WITHIN}[one frame known-ampere]",
        "history of every sample from the first",
        "p.past + tile.batch * p.past_batch +",
        "p.past +",
    ),
    hopper(
        f"{WITHIN}[no history-hopper]",
        "a stage given back before its products are done",
        "ops::multiply_wait<1>();",
        "ops::multiply_wait<3>();",
    ),
    hopper(
        f"{WITHIN}[no history-hopper]",
        "the second slice with the first's weights",
        "b + t * kWeightBytes + slice",
        "b + t * kWeightBytes",
    ),
    hopper(
        f"{WITHIN}[more than a tile-hopper]",
        "both warpgroups take the first pixels",
        "inputs(turn.stage) + group * 64 * kRowBytes",
        "inputs(turn.stage) + 0 * group",
    ),
    hopper(
        f"{WITHIN}[one frame known-hopper]",
        "history read from x",
        "source.from == From::kPast ? maps.past : maps.x",
        "maps.x",
    ),
    epilogue(
        f"{WITHIN}[no history-hopper]",
        "half of the quad transposed",
        "bit <= 2; bit <<= 1",
        "bit <= 1; bit <<= 1",
    ),
    epilogue(
        f"{NOT_GIVEN}[plus-hopper]",
        "squares of half of the channels",
        "ops::as_float(ops::shuffle_xor(ops::as_bits(squares), 2))",
        "squares",
    ),
    epilogue(
        f"{WITHIN}[384-hopper]",
        "the bias of the first block of channels",
        "p.bias + at_channel",
        "p.bias + at_channel % kChannels",
    ),
    geometry(
        f"{WITHIN}[one frame known-ampere]",
        "history from its end, however long it is",
        "frame + p.past_frames}",
        "frame + 2}",
    ),
    geometry(
        f"{WITHIN}[no history-ampere]",
        "the picture goes on in the next line",
        "h >= p.height || w < 0 || w >= p.width",
        "h >= p.height",
    ),
    geometry(
        f"{WITHIN}[no history-ampere]",
        "two rows of a matrix load in the same banks",
        "(piece ^ (row >> 2 & 1))",
        "piece",
    ),
    geometry(
        f"{WITHIN}[more than a tile-hopper]",
        "what is added of every frame from the first",
        "(tile.frame + frame) * p.plus_frame",
        "frame * p.plus_frame",
    ),
]

"""Bugs of attention, chunk_attention and sparse_attention."""

from __future__ import annotations

from functools import partial

from plant import Mutation

_ATT = "test_attention.py::"
att = partial(Mutation, "attention", "attention/triton.py")
ATTENTION = [
    att(
        _ATT + "test_triton_within_budget",
        "one key too many in the ragged block",
        "tl.where((key < left)[None, :], logits,",
        "tl.where((key <= left)[None, :], logits,",
    ),
    att(
        _ATT + "test_triton_gives_the_log_of_the_sum",
        "log of the sum without the maximum",
        "(top + tl.log2(total)) *",
        "(tl.log2(total)) *",
    ),
    att(
        _ATT + "test_triton_gives_the_log_of_the_sum",
        "log of the sum to base 2",
        "(top + tl.log2(total)) * 0.6931471805599453",
        "(top + tl.log2(total))",
    ),
    att(
        _ATT + "test_triton_within_budget",
        "the accumulator does not decay",
        'acc * decay[:, None], input_precision="ieee")\n    return acc, total, top',
        'acc, input_precision="ieee")\n    return acc, total, top',
    ),
    att(_ATT + "test_triton_within_budget", "the sum does not decay", "total * decay + tl.sum", "total + tl.sum"),
    att(
        _ATT + "test_triton_within_budget",
        "bias not in powers of two",
        "(extra * 1.4426950408889634)",
        "extra",
    ),
    att(
        _ATT + "test_a_fully_masked_sample_gives_zeros",
        "minus infinity minus itself",
        'origin = tl.where(highest == float("-inf"), 0.0, highest)',
        "origin = highest",
    ),
    att(
        _ATT + "test_a_fully_masked_sample_gives_zeros",
        "divided by a sum of nothing",
        "total = tl.where(total == 0.0, 1.0, total)",
        "total = total * 1.0",
    ),
    att(
        _ATT + "test_triton_within_budget_of_adversarial_inputs",
        "the maximum of logits that are not scaled",
        "tl.maximum(top, tl.max(logits, 1) * scale)",
        "tl.maximum(top, tl.max(logits, 1))",
    ),
    att(
        _ATT + "test_triton_overlapped_within_budget",
        "values not behind but beside (sm_90)",
        "before = place_of(tl.where(start == begin, alone, start - BLOCK), first",
        "before = place_of(tl.where(start == begin, alone, start), first",
    ),
    att(
        _ATT + "test_triton_overlapped_within_budget",
        "the first block's logits for ever (sm_100)",
        "logits = following",
        "logits = logits",
    ),
    Mutation(
        "attention",
        "attention/reference.py",
        _ATT + "test_the_weights_of_the_reference_are_exact_where_logits_are_thousands",
        "weights from the log of the sum, rounded",
        "torch.softmax(logits.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0), lse",
        "torch.exp(logits - lse.masked_fill(nothing[..., 0], 0.0)[..., None]), lse",
    ),
]

_CHUNK = "test_chunk_attention.py::"
chunk = partial(Mutation, "chunk_attention", "chunk_attention/triton.py")
CHUNK_ATTENTION = [
    chunk(
        _CHUNK + "test_positions_relative_to_the_cache",
        "the sink asked with the window's queries",
        "source = sink_q if piece == 0 else q",
        "source = q",
    ),
    chunk(
        _CHUNK + "test_each_way_through_the_pieces",
        "the second and third piece begin where the other does",
        "tl.where(piece == 1, start1, start2)",
        "tl.where(piece == 1, start2, start1)",
    ),
    chunk(
        _CHUNK + "test_each_way_through_the_pieces",
        "the third piece's keys with the second's values (TMA)",
        "            k2,\n            v2,",
        "            k2,\n            v1,",
    ),
    Mutation(
        "chunk_attention",
        "attention/triton.py",
        _CHUNK + "test_each_way_through_the_pieces",
        "a piece's ragged block read from the cache's beginning",
        "at = place_of(alone, first, listed, GROUP)\n    following",
        "at = place_of(alone, 0, listed, GROUP)\n    following",
    ),
    Mutation(
        "chunk_attention",
        "chunk_attention/ring.py",
        _CHUNK + "test_the_ring_holds_what_a_list_would",
        "the ring's last place never written",
        "before_end = min(to_window, self.capacity - first)",
        "before_end = min(to_window, self.capacity - first - 1)",
    ),
]

_SPARSE = "test_sparse_attention.py::"
sparse = partial(Mutation, "sparse_attention", "sparse_attention/triton.py")
places = partial(Mutation, "sparse_attention", "attention/places.py")
SPARSE_ATTENTION = [
    sparse(
        _SPARSE + "test_triton_within_budget[67-199-64-torch.float16]",
        "every list begins where the first does",
        "listed = indices + begin",
        "listed = indices",
    ),
    sparse(
        _SPARSE + "test_triton_within_budget[67-199-64-torch.float16]",
        "every head takes the lists of the first",
        "sample * indptr_sample + head * indptr_head",
        "sample * indptr_sample + 0 * head * indptr_head",
    ),
    sparse(
        _SPARSE + "test_triton_within_budget[67-199-64-torch.float16]",
        "the last key of the sequence dropped",
        "count - GROUP + keys - tl.load(",
        "count - GROUP + keys - 1 - tl.load(",
    ),
    sparse(
        _SPARSE + "test_empty_lists_give_zeros_and_minus_infinity[triton]",
        "a list of one block taken for an empty one",
        "if begin < end:",
        "if begin + 1 < end:",
    ),
    sparse(
        _SPARSE + "test_empty_lists_give_zeros_and_minus_infinity[triton]",
        "where all lists are empty, the log of the sum is 0",
        "lse.fill_(-math.inf)",
        "lse.zero_()",
    ),
    sparse(
        _SPARSE + "test_each_way_along_the_lists[128-64-80]",
        "the second half of the values is the first again",
        "rows_of(v + HALF, at, left, v_token, BLOCK, HEAD_DIM - HALF, HALF, False)",
        "rows_of(v, at, left, v_token, BLOCK, HEAD_DIM - HALF, HALF, False)",
    ),
    places(
        _SPARSE + "test_empty_places_have_no_say[triton]",
        "the lengths of blocks ignored",
        "left = tl.load(lengths + place // GROUP) - place % GROUP",
        "left = GROUP - place % GROUP",
    ),
    places(
        _SPARSE + "test_each_way_along_the_lists[64-64-80]",
        "with lengths, the last block of a list never read",
        "alone, begin, end = 0, BLOCK, last + BLOCK",
        "alone, begin, end = 0, BLOCK, last",
    ),
    places(
        _SPARSE + "test_each_way_along_the_lists[64-64-80]",
        "the list read one block late",
        "place_of(tl.minimum(start + BLOCK, count - 1)",
        "place_of(tl.minimum(start, count - 1)",
    ),
    places(
        _SPARSE + "test_triton_within_budget[131-67-64-torch.float32]",
        "all tiles of a block read from where it begins",
        "tl.load(listed + start // GROUP) * GROUP + start % GROUP",
        "tl.load(listed + start // GROUP) * GROUP",
    ),
]

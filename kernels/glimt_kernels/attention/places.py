"""Where attention's kernels find the next keys: in a row, or in the blocks that a list names."""

# The bodies of kernels are in Triton's language, which annotates nothing but constants.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from glimt_kernels.triton_env import jit, tl


@jit
def place_of(start, first, listed, GROUP: tl.constexpr):
    """The place of key ``start``: that many after ``first``; with GROUP, in the ``listed`` blocks of GROUP tokens."""
    if GROUP == 0:
        place = first + start
    else:
        place = tl.load(listed + start // GROUP) * GROUP + start % GROUP
    return place


@jit
def advance(following, start, first, listed, count, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """(place of key ``start``, that of the block of keys after it), the former being ``following`` of the call before.

    A list is read one block ahead: then its number is there when the address is asked for, and the pipeline of loads
    is not shared with the loads from the list, which would halve the blocks in flight.
    """
    if GROUP == 0:
        at = first + start
    else:
        at = following
        following = place_of(tl.minimum(start + BLOCK, count - 1), first, listed, GROUP)
    return at, following


@jit
def left_at(place, lengths, GROUP: tl.constexpr, RAGGED: tl.constexpr):
    """With RAGGED, how many tokens its block holds from ``place`` on, perhaps none; ``lengths`` of all blocks."""
    left = 0
    if RAGGED:
        left = tl.load(lengths + place // GROUP) - place % GROUP
    return left


@jit
def apart(count, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """(start of the block of keys before the loop, where the loop begins, where it ends).

    Only the last block of a row can be ragged, so it comes first and the others need no mask. With RAGGED any can be,
    and only of the first is it sure that it holds a key, without which the running maximum would be -inf - -inf.
    """
    last = (tl.cdiv(count, BLOCK) - 1) * BLOCK
    if RAGGED:
        alone, begin, end = 0, BLOCK, last + BLOCK
    else:
        alone, begin, end = last, 0, last
    return alone, begin, end

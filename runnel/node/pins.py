"""Pins: the rounds whose states newcomers download, and how much of a state the other rounds name.

Records are counted in blocks of so many, and a pin is the first round of a block that did not fail;
genesis is the one of the first block. Where every state follows from the one before it and a few
numbers, only pins and the rounds that close the run are called by the whole state; the others by a part of
it, another one in each round. A result that somebody took twice or not at all changes all of the
weights, and any part shows that; a single wrong value is seen once its part's turn or a pin has come.
"""

from __future__ import annotations

from collections.abc import Sequence

from runnel.node.chain import Chain
from runnel.node.records import RecordKind
from runnel.types import Digest


def is_pin(number: int, before: int, every: int) -> bool:
    """Whether round `number` is the first of its block; `before` is the round before it (-1: none)."""
    return number // every != max(before, 0) // every


def pins(chain: Chain, path: Sequence[Digest], every: int) -> tuple[int, ...]:
    """The two newest pins of a path of `chain`, newest first; -1 is genesis, behind which there is none."""
    found = list[int]()
    for block in range((len(path) - 2) // every, 0, -1):
        first = _first_round(chain, path, range(block * every, (block + 1) * every))
        found += [] if first is None else [first]
        if len(found) == 2:
            return tuple(found)
    return (*found, -1)


def named_part(
    words: int, number: int, before: int, *, every: int, final: bool
) -> tuple[int, int] | None:
    """From which to which of its words the record of round `number` names a state; None for the whole.

    Args:
        words: of the state.
        before: the round before it (-1: none).
        every: records in a block, and parts of a state.
        final: whether the round is one of those that close the run.
    """
    if final or is_pin(number, before, every):
        return None
    turn = number % every
    return words * turn // every, words * (turn + 1) // every


def _first_round(chain: Chain, path: Sequence[Digest], numbers: range) -> int | None:
    there = numbers[: max(0, len(path) - 1 - numbers.start)]
    rounds = (n for n in there if chain.at(path, n + 1).kind is RecordKind.ROUND)
    return next(rounds, None)

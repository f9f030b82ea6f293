"""Which rounds are pins, and which part of a state the others name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.node.chain import Chain
from runnel.node.pins import is_pin, named_part, pins
from runnel.node.records import RecordKind
from tests.support.members import following_record, genesis


def chain_of(rounds: list[bool]) -> Chain:
    """A chain of rounds and, where False, aborts."""
    chain = Chain(genesis(1), open_rounds=1)
    for is_round in rounds:
        kind = RecordKind.ROUND if is_round else RecordKind.ABORT
        chain.add(following_record(chain.head, kind), None)
        chain.follow([*chain.path, following_record(chain.head, kind).hash])
    return chain


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([], (-1,)),
        ([True] * 4, (-1,)),
        ([True] * 5, (4, -1)),
        ([True] * 9, (8, 4)),
        ([True] * 14, (12, 8)),
        ([True] * 4 + [False] * 3, (-1,)),
        ([True] * 4 + [False, False, True, True], (6, -1)),
        ([True] * 4 + [False] * 4 + [True], (8, -1)),
        ([True] * 5 + [False] * 8 + [True], (13, 4)),
    ],
)
def test_a_pin_is_the_first_round_of_its_block(
    rounds: list[bool], expected: tuple[int, ...]
) -> None:
    chain = chain_of(rounds)
    assert pins(chain, chain.path, 4) == expected


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 9))
def test_pins_are_those_rounds_that_say_so(rounds: list[bool], every: int) -> None:
    chain, before, expected = chain_of(rounds), -1, [-1]
    for number, is_round in enumerate(rounds):
        if is_round:
            if is_pin(number, before, every):
                expected.insert(0, number)
            before = number
    assert pins(chain, chain.path, every) == tuple(expected[:2])


@given(st.integers(0, 1000), st.integers(1, 70), st.integers(0, 500))
def test_the_rounds_of_a_block_have_all_of_a_state_between_them(
    words: int, every: int, first: int
) -> None:
    parts = [
        named_part(words, number, number, every=every, final=False)
        for number in range(first, first + every)
    ]
    covered = sorted(word for part in parts if part is not None for word in range(*part))
    assert covered == list(range(words))


def test_pins_and_closing_rounds_name_all_of_it() -> None:
    assert named_part(100, 8, 7, every=4, final=False) is None
    assert named_part(100, 10, 7, every=4, final=False) is None
    assert named_part(100, 9, 8, every=4, final=True) is None
    assert named_part(100, 9, 8, every=4, final=False) == (25, 50)

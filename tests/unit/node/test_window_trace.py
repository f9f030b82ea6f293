"""What commitments name of public windows: noted at steps, named by content, and left out where nobody could use it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.window_facts import MAX_MOVES, Move, WindowFacts
from runnel.node.window_trace import WindowEnd, WindowNames, WindowTrace
from runnel.optim.exchange import raw
from runnel.optim.inner_state import InnerState, Remembered
from runnel.types import Digest

DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)
INTEGERS = st.integers(0, (1 << 62) - 1)
MOVES = st.lists(st.builds(Move, INTEGERS, INTEGERS, st.booleans()), max_size=MAX_MOVES).map(tuple)
FACTS = st.builds(
    WindowFacts, DIGESTS, DIGESTS, DIGESTS, DIGESTS, INTEGERS, moves=MOVES, late=MOVES
)
RESIDUAL = (np.zeros(2, dtype=np.float32),)


@given(FACTS)
def test_facts_come_back_from_the_wire(facts: WindowFacts) -> None:
    packed = pack(facts.to_wire())
    assert WindowFacts.from_wire(unpack(packed, max_bytes=1 << 12)) == facts


def test_facts_of_another_version_are_refused_as_such() -> None:
    facts = WindowFacts(digest(), digest(), digest(), digest(), 0, ()).to_wire()
    with pytest.raises(PeerError, match="version 2, we read 1") as caught:
        WindowFacts.from_wire([2, *facts[1:]])
    assert caught.value.reason == "version"


def inner(value: float) -> InnerState:
    return InnerState((Remembered(0, "mean", torch.tensor([value])),))


def values(value: float) -> Any:
    return np.full(2, value, dtype=np.float32)


class Windows:
    """A trainer's notes of one fragment of several, and what the codec thread makes of them."""

    def __init__(self) -> None:
        self.trace, self.names = WindowTrace(), WindowNames()

    def end(self, serial: int, *, fragments: tuple[int, ...] = (0,)) -> list[WindowEnd]:
        return self.trace.end(10 * serial, inner(serial), fragments)

    def name(self, end: WindowEnd | None, value: float, fragment: int = 0) -> WindowFacts | None:
        return self.names.of(fragment, end, values(value), RESIDUAL)


def test_a_window_is_named_by_where_it_began_and_by_what_came_in_it() -> None:
    windows = Windows()
    windows.trace.progress = 7
    assert windows.name(windows.end(1)[0], 1.0) is None, "where it began nobody knows"
    moves = (Move(1, 0, starts=True), Move(3, 0, starts=False))
    for move in moves:
        windows.trace.note(0, move)
    windows.trace.progress = 9
    assert windows.name(windows.end(2)[0], 2.0) == WindowFacts(
        values=digest(raw(values(1.0))),
        inner=inner(1).name,
        next_inner=inner(2).name,
        residual=digest(raw(RESIDUAL[0])),
        progress=7,
        moves=moves,
    )
    third = windows.name(windows.end(3)[0], 3.0)
    assert third is not None
    assert (third.moves, third.progress) == ((), 9)
    assert third.values == digest(raw(values(2.0)))


def test_what_comes_after_the_values_were_read_is_told_apart() -> None:
    windows, move = Windows(), Move(2, 4, starts=False)
    windows.name(windows.end(1)[0], 1.0)
    (end,) = windows.end(2)
    late = end.moved(values(2.0), move).moved(values(2.5), replace(move, step=3))
    second = windows.name(late, 3.0)
    assert second is not None
    assert (second.moves, second.late) == ((), (move, replace(move, step=3)))
    third = windows.name(windows.end(3)[0], 4.0)
    assert third is not None
    assert third.values == digest(raw(values(2.0))), "as they were read"


def test_a_window_that_one_fragment_sat_out_has_no_names() -> None:
    windows = Windows()
    for fragment, end in enumerate(windows.end(1, fragments=(0, 1))):
        windows.name(end, 1.0, fragment)
    windows.name(windows.end(2)[0], 2.0)
    ends = windows.end(3, fragments=(0, 1))
    assert windows.name(ends[0], 3.0, 0) is not None
    assert windows.name(ends[1], 3.0, 1) is None
    assert windows.name(windows.end(4, fragments=(0, 1))[1], 4.0, 1) is not None


def test_a_share_that_ends_no_window_has_no_names_and_the_next_one_neither() -> None:
    windows = Windows()
    windows.name(windows.end(1)[0], 1.0)
    assert windows.name(None, 1.5) is None
    assert windows.name(windows.end(2)[0], 2.0) is None
    assert windows.name(windows.end(3)[0], 3.0) is not None


def test_what_nobody_can_repeat_has_no_names() -> None:
    windows = Windows()
    windows.name(windows.end(1)[0], 1.0)
    windows.trace.note(0, None)
    assert windows.name(windows.end(2)[0], 2.0) is None
    (end,) = windows.end(3)
    assert windows.name(end.moved(values(3.0), None), 3.5) is None
    fourth = windows.name(windows.end(4)[0], 4.0)
    assert fourth is not None
    assert fourth.values == digest(raw(values(3.0))), "as they were read"


def test_nor_has_a_window_of_an_optimizer_that_cannot_be_copied_or_of_too_many_moves() -> None:
    windows = Windows()
    windows.name(windows.end(1)[0], 1.0)
    assert windows.name(windows.trace.end(20, None, (0,))[0], 2.0) is None
    assert windows.name(windows.end(3)[0], 3.0) is None
    for step in range(MAX_MOVES + 1):
        windows.trace.note(0, Move(step, 0, starts=False))
    assert windows.name(windows.end(4)[0], 4.0) is None
    assert windows.name(windows.end(5)[0], 5.0) is not None

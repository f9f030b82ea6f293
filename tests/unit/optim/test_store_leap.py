"""Taking up several records at once, given the state after the last: the same as one by one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.optim.store import Outcome
from tests.support.ledger import BOUNDS, Flags, Ledger, Pair, array, decoded

PAIRS = st.tuples(st.integers(-9, 9), st.integers(-9, 9))
FLAGS = st.tuples(st.booleans(), st.booleans())
RECORDS = st.lists(st.tuples(FLAGS, PAIRS, FLAGS), min_size=1, max_size=4)
EVENTS = st.one_of(
    st.tuples(st.just("train"), PAIRS),
    st.tuples(st.just("merge")),
    st.tuples(st.just("hand_over")),
    st.tuples(st.just("decide"), st.integers(0, 3), FLAGS, PAIRS, FLAGS),
    st.tuples(st.just("restart")),
    st.tuples(st.just("leap"), RECORDS),
)


class LeapingLedger(Ledger):
    """A ledger whose peer may be away for some records."""

    def leap(self, records: list[tuple[Flags, Pair, Flags]]) -> None:
        """Records one after the other, each with our oldest open contribution, taken up at once."""
        theta, outcomes, keys = self.store.parameters(0).copy(), [], self.open
        for included, others, losses in records:
            key = keys.pop(0) if keys else -1
            sent = self.payloads.get(key, ())
            included = included if sent else (False, False)
            mine = decoded(sent) * included if sent else array([0, 0])
            theta = theta - mine - 2 * array(others)
            taken = tuple(array([1]) if loss else None for loss in losses)
            outcomes.append(Outcome(key, 0, BOUNDS, sent, included, taken, final=False))
            handed = self.store.handed(key)
            if handed is not None and handed.snapshot is not None:
                self.in_w = self.in_w * ~array(included).astype(bool)
            self.on_chain = self.on_chain + mine - array(losses)
        self._take(self.store.leap(0, theta, self.store.momentum(0).copy(), outcomes).delta)


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=30), st.booleans())
def test_a_leap_loses_nothing_and_counts_nothing_twice(
    events: list[tuple[Any, ...]], public: bool
) -> None:
    ledger = LeapingLedger(public=public)
    for name, *arguments in events:
        getattr(ledger, name)(*arguments)
        ledger.check()


@given(RECORDS, PAIRS)
def test_a_leap_ends_where_single_steps_end(
    records: list[tuple[Flags, Pair, Flags]], learned: Pair
) -> None:
    leaping, walking = LeapingLedger(), LeapingLedger()
    for ledger in (leaping, walking):
        ledger.train(learned)
        ledger.hand_over()
    leaping.leap(records)
    for record in records:
        walking.leap([record])
    for ledger in (leaping, walking):
        ledger.merge()
    assert (leaping.store.parameters(0) == walking.store.parameters(0)).all()
    assert (leaping.store.residual(0) == walking.store.residual(0)).all()
    assert (leaping.w == walking.w).all()


def test_a_leap_is_one_merge_for_the_trainer() -> None:
    ledger = LeapingLedger()
    ledger.leap([((False, False), (1, 1), (False, False))] * 3)
    assert ledger.store.version(0) == 1
    assert len(ledger.merges) == 1
    assert ledger.merges[0].tolist() == [-6, -6]

"""The outer store's one rule, exactly: what a peer learned is on its chain, in its residual or in its trainer.

Integers stand for values, so that "exactly" means equal. Two values, two slices.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import BugError
from runnel.optim.store import Outcome
from tests.support.integers import drift_of
from tests.support.ledger import (
    BOUNDS,
    NOTHING,
    Flags,
    Ledger,
    Pair,
    array,
    decoded,
    encoded,
    fresh,
)

PAIRS = st.tuples(st.integers(-9, 9), st.integers(-9, 9))
FLAGS = st.tuples(st.booleans(), st.booleans())
EVENTS = st.one_of(
    st.tuples(st.just("train"), PAIRS),
    st.tuples(st.just("merge")),
    st.tuples(st.just("hand_over")),
    st.tuples(st.just("decide"), st.integers(0, 3), FLAGS, PAIRS, FLAGS),
    st.tuples(st.just("abort")),
    st.tuples(st.just("give_up")),
    st.tuples(st.just("restart")),
)


PUBLIC_EVENTS = st.one_of(EVENTS, st.tuples(st.just("end_window")))


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=40))
def test_what_a_peer_learned_is_never_lost_and_never_counted_twice(
    events: list[tuple[Any, ...]],
) -> None:
    lead(Ledger(), events)


@settings(max_examples=200)
@given(st.lists(PUBLIC_EVENTS, max_size=40))
def test_nor_is_it_where_windows_start_from_public_values(events: list[tuple[Any, ...]]) -> None:
    lead(Ledger(public=True), events)


def lead(ledger: Ledger, events: list[tuple[Any, ...]]) -> None:
    """A life, checked after each event, and at its end once more by what is on the chain."""
    for name, *arguments in events:
        getattr(ledger, name)(*arguments)
        ledger.check()
    ledger.settle()


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_random_life_loses_nothing_and_counts_nothing_twice(seed: int, public: bool) -> None:
    Ledger(public=public).live(Random(seed), events=600)


def handed(learned: Pair = (5, -3)) -> Ledger:
    ledger = Ledger()
    ledger.train(learned)
    ledger.hand_over()
    return ledger


def test_included_moves_what_was_not_sent_into_the_residual() -> None:
    ledger = handed()
    ledger.train((1, 1))
    ledger.decide(0, (True, True), (0, 0), (False, False))
    ledger.merge()
    assert ledger.store.parameters(0).tolist() == [-4, 4]
    assert ledger.store.residual(0).tolist() == [1, 1]
    assert ledger.w.tolist() == [-5, 3]  # theta' and the steps since: two owners, no overlap


def test_not_included_leaves_residual_and_drift_as_they_were() -> None:
    ledger = handed()
    ledger.decide(0, (False, False), (10, 10), (False, False))
    ledger.merge()
    assert ledger.store.residual(0).tolist() == [0, 0]
    assert (ledger.store.parameters(0) - ledger.w).tolist() == [5, -3]


def test_included_is_decided_slice_by_slice() -> None:
    ledger = handed()
    ledger.decide(0, (True, False), (0, 0), (False, False))
    ledger.merge()
    assert ledger.store.residual(0).tolist() == [1, 0]
    assert (ledger.store.parameters(0) - ledger.w).tolist() == [0, -3]


def test_an_aborted_contribution_goes_out_again_with_the_next_one() -> None:
    ledger = handed()
    ledger.abort()
    ledger.train((1, 1))
    ledger.hand_over()
    assert decoded(ledger.payloads[2]).tolist() == [6, -2]


def test_a_restart_sends_from_the_residual_what_the_trainer_lost() -> None:
    ledger = handed()
    ledger.restart()
    assert ledger.store.residual(0).tolist() == [5, -3]
    ledger.decide(0, (True, True), (0, 0), (False, False))
    assert ledger.store.residual(0).tolist() == [1, 1]


def test_a_record_given_up_is_owed_again() -> None:
    ledger = handed()
    ledger.decide(0, (True, True), (3, 3), (True, False))
    ledger.give_up()
    assert ledger.store.parameters(0).tolist() == [0, 0]
    assert ledger.owed().tolist() == [5, -3]
    ledger.check()


def test_a_later_hand_over_of_the_fragment_takes_the_drift_over() -> None:
    ledger = handed()
    ledger.train((2, 2))
    ledger.hand_over()
    first = ledger.store.handed(1)
    assert first is not None
    assert first.snapshot is first.after is None
    ledger.decide(0, (True, True), (0, 0), (False, False))
    ledger.check()
    ledger.decide(0, (True, True), (0, 0), (False, False))
    ledger.check()


# -- hand-over


def test_a_trainer_that_has_not_merged_yet_hands_nothing_over() -> None:
    ledger = handed()
    ledger.decide(0, (True, True), (0, 0), (False, False))
    store = ledger.store
    assert store.encode("k", 0, ledger.w.copy(), version=0, bounds=BOUNDS) is None
    assert store.encode("k", 0, ledger.w.copy(), version=1, bounds=BOUNDS) is not None


def test_a_round_is_handed_over_once() -> None:
    store = fresh()
    assert store.encode("k", 0, array([0, 0]), version=0, bounds=BOUNDS) is not None
    assert store.encode("k", 0, array([1, 1]), version=0, bounds=BOUNDS) is None
    store.forget("k")
    assert store.encode("k", 0, array([1, 1]), version=0, bounds=BOUNDS) is not None


def test_norms_and_drift_are_of_what_is_sent_and_of_what_is_in_the_trainer() -> None:
    store = fresh()
    store.residual(0)[:] = [1, 0]
    unsent: list[Any] = []
    given = store.encode(
        "k",
        0,
        array([-4, 5]),
        version=0,
        bounds=BOUNDS,
        keep=lambda part: unsent.append(part.copy()),
    )
    assert given is not None
    assert drift_of(given, unsent).tolist() == [4, -5]
    assert decoded(given.payloads).tolist() == [4, -6]
    assert given.norms == (4.0, 6.0)


def test_fragments_do_not_touch_each_other() -> None:
    store = fresh(fragments=2)
    store.encode("k", 1, array([-4, 0]), version=0, bounds=BOUNDS)
    store.prepare("tag", 0, BOUNDS, encoded([2, 2]), final=False)
    outcome = Outcome("j", 0, BOUNDS, (), (False, False), NOTHING, final=False)
    store.adopt("tag", outcome)
    assert (store.version(0), store.version(1)) == (1, 0)
    assert store.parameters(1).tolist() == [0, 0]
    kept = store.handed("k")
    assert kept is not None
    assert kept.snapshot is not None


# -- results and states


def test_a_reducer_takes_back_what_its_encoding_lost() -> None:
    payloads = [array([v]).astype("<i8").tobytes() for v in (3, 4)]
    ones = np.ones(2, dtype=np.int64)
    mine = fresh().reduce(payloads, ones, ones, numel=1, own=0)
    assert np.frombuffer(mine.payload, "<i8").tolist() == [6]
    assert mine.loss is not None
    assert mine.loss.tolist() == [1]


def test_a_reducer_that_contributed_nothing_has_nothing_to_take_back() -> None:
    payloads = [array([v]).astype("<i8").tobytes() for v in (3, 4)]
    ones = np.ones(2, dtype=np.int64)
    assert fresh().reduce(payloads, ones, ones, numel=1, own=-1).loss is None


def test_a_state_is_prepared_once_and_named_by_its_content() -> None:
    store, other = fresh(), fresh()
    first = store.prepare("tag", 0, BOUNDS, encoded([2, 4]), final=False)
    assert store.prepare("tag", 0, BOUNDS, encoded([6, 6]), final=False) == first
    assert other.prepare("other tag", 0, BOUNDS, encoded([2, 4]), final=False) == first
    assert store.prepare("second", 0, BOUNDS, encoded([6, 6]), final=False) != first
    assert store.parameters(0).tolist() == [0, 0]
    outcome = Outcome("k", 0, BOUNDS, (), (False, False), NOTHING, final=False)
    store.adopt("tag", outcome)
    assert store.root(0) == first


def test_only_a_prepared_state_is_adopted() -> None:
    outcome = Outcome("k", 0, BOUNDS, (), (False, False), NOTHING, final=False)
    with pytest.raises(BugError):
        fresh().adopt("tag", outcome)


@given(st.lists(st.tuples(FLAGS, PAIRS, FLAGS), min_size=1, max_size=5), PAIRS, st.integers(0, 4))
def test_a_leap_over_records_ends_where_one_by_one_ends(
    rows: list[tuple[Flags, Pair, Flags]], learned: Pair, ours: int
) -> None:
    """Our contribution is in at most one of the records on the way, as it is to one round."""
    walker, leaper = handed(learned), handed(learned)
    outcomes, theta = [], array([0, 0])
    for place, (included, others, losses) in enumerate(rows):
        own = place == ours
        sent = walker.payloads[1] if own else ()
        flags = included if own else (False, False)
        mine = decoded(sent) * flags if own else array([0, 0])
        taken = tuple(array([1]) if loss else None for loss in losses)
        outcome = Outcome(1 if own else -place - 1, 0, BOUNDS, sent, flags, taken, final=False)
        step = mine + 2 * array(others)
        walker.store.prepare("tag", 0, BOUNDS, encoded(step), final=False)
        walker.merges.append(walker.store.adopt("tag", outcome).delta)
        outcomes.append(outcome)
        theta = theta - step
    leaper.merges.append(leaper.store.leap(0, theta.copy(), array([0, 0]), outcomes).delta)
    assert leaper.store.parameters(0).tolist() == walker.store.parameters(0).tolist()
    assert leaper.owed().tolist() == walker.owed().tolist()
    for ledger in (walker, leaper):
        ledger.merge()
    assert leaper.store.residual(0).tolist() == walker.store.residual(0).tolist()
    assert leaper.w.tolist() == walker.w.tolist()

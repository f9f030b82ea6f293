"""Windows that start from public values: where the trainer is after a hand-over, and what becomes of q then."""

from __future__ import annotations

from typing import Any

from tests.support.ledger import BOUNDS, Flags, Ledger, Pair, array, decoded, fresh


def handed(learned: Pair = (5, -3)) -> Ledger:
    """What is sent of 5 and -3 is 4 and -4: 1 and 1 stay with the residual."""
    ledger = Ledger(public=True)
    ledger.train(learned)
    ledger.hand_over()
    return ledger


def sent(ledger: Ledger) -> Any:
    return decoded(ledger.payloads[ledger.rounds])


def test_the_trainer_goes_on_from_outer_values_less_what_was_sent() -> None:
    ledger = handed()
    ledger.train((1, 0))  # while it is encoded
    ledger.merge()
    assert sent(ledger).tolist() == [4, -4]
    assert (ledger.w == ledger.store.parameters(0) - sent(ledger) - [1, 0]).all()
    ledger.check()


def test_a_result_is_added_to_what_was_learned_since() -> None:
    ledger = handed()
    ledger.merge()
    ledger.train((2, 2))
    ledger.decide(0, (True, True), (3, 3), (False, False))
    ledger.merge()
    assert (ledger.w == ledger.store.parameters(0) - [2, 2]).all()
    assert ledger.store.residual(0).tolist() == [1, 1], "what the encoding lost"
    ledger.check()


def test_after_an_abort_the_next_share_holds_what_the_last_one_held() -> None:
    ledger = handed()
    ledger.merge()
    ledger.abort()
    assert (ledger.w == ledger.store.parameters(0) - [4, -4]).all(), "nothing moves"
    ledger.train((4, 4))
    ledger.hand_over()
    assert sent(ledger).tolist() == [8, 0], "of 5 + 4 and -3 + 4"
    ledger.merge()
    assert (ledger.w == ledger.store.parameters(0) - sent(ledger)).all()
    ledger.decide(0, (True, True), (0, 0), (False, False))
    ledger.merge()
    assert (ledger.on_chain == sent(ledger)).all()
    assert ledger.store.residual(0).tolist() == [1, 1]
    ledger.check()


def test_a_slice_that_is_not_included_stays_with_the_trainer() -> None:
    included: Flags = (True, False)
    ledger = handed()
    ledger.decide(0, included, (1, 1), (False, False))
    ledger.merge()
    assert (ledger.store.parameters(0) - ledger.w).tolist() == [0, -4]
    ledger.hand_over()
    assert sent(ledger).tolist() == [0, -4]
    ledger.check()


def test_without_its_start_a_trainer_hands_nothing_over_again() -> None:
    store = fresh(public=True)
    assert store.encode("one", 0, array([-5, 3]), version=0, bounds=BOUNDS) is not None
    start = store.start("one", BOUNDS)
    assert start is not None
    assert store.encode("two", 0, array([-6, 3]), version=0, bounds=BOUNDS) is None
    moved = array([-6, 3]) + start.delta
    assert store.encode("two", 0, moved, version=start.version, bounds=BOUNDS) is not None


def test_after_a_restart_all_of_it_is_owed_and_the_trainer_starts_at_outer_values() -> None:
    ledger = handed()
    ledger.merge()
    ledger.restart()
    assert ledger.store.residual(0).tolist() == [5, -3]
    ledger.decide(0, (True, True), (0, 0), (False, False))
    assert ledger.store.residual(0).tolist() == [1, 1]
    ledger.check()


def test_private_windows_start_nowhere() -> None:
    store = fresh()
    assert store.encode("key", 0, array([-5, 3]), version=0, bounds=BOUNDS) is not None
    assert store.start("key", BOUNDS) is None
    assert store.version(0) == 0

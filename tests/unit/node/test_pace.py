"""How much a slow link sends: measured from what it carried, every slice in its turn."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runnel.node.pace import LinkMeter, Pace

MBIT = 1_000_000
SLICE = 125_000
"""One Mbit."""


def meter(bits_s: float) -> LinkMeter:
    """A link that carries so much."""
    subject = LinkMeter()
    subject.begin(0.0)
    subject.end(SLICE, 8 * SLICE / bits_s)
    return subject


def sent(pace: Pace, fragment: int, slices: int, *, time_s: float) -> int:
    held = pace.withheld(fragment, slices, SLICE, time_s=time_s)
    return slices - len(held)


# -- the meter


def test_nothing_is_known_of_a_link_that_carried_nothing() -> None:
    assert LinkMeter().bits_s() == math.inf


def test_transfers_beside_each_other_share_the_link() -> None:
    subject = LinkMeter()
    for _ in range(3):
        subject.begin(10.0)
    for _ in range(3):
        subject.end(SLICE, 13.0)
    assert subject.bits_s() == pytest.approx(1 * MBIT)


def test_a_transfer_that_hangs_does_not_make_the_link_slow() -> None:
    subject = LinkMeter()
    subject.begin(0.0)
    subject.begin(0.0)
    subject.end(SLICE, 0.5)
    subject.end(0, 20.0)
    assert subject.bits_s() == pytest.approx(2 * MBIT)


def test_small_messages_say_nothing_of_a_link() -> None:
    subject = LinkMeter()
    subject.begin(0.0)
    subject.end(1000, 1.0)
    assert subject.bits_s() == math.inf


def test_a_link_that_has_recovered_is_seen_by_the_little_that_it_then_carries() -> None:
    subject = meter(0.1 * MBIT)
    for start in (100.0, 200.0):
        subject.begin(start)
        subject.end(10_000, start + 0.01)
    assert subject.bits_s() == pytest.approx(8 * MBIT)


def test_one_bad_burst_is_not_the_link() -> None:
    subject = meter(20 * MBIT)
    for start in (10.0, 20.0):
        subject.begin(start)
        subject.end(SLICE, start + 0.05)
    subject.begin(30.0)
    subject.end(SLICE, 35.0)
    assert subject.bits_s() == pytest.approx(20 * MBIT)


def test_a_link_that_never_rests_is_measured_too() -> None:
    subject = LinkMeter()
    for second in range(100):
        subject.begin(float(second))
        if second:
            subject.end(SLICE, second + 0.5)
    assert subject.bits_s() == pytest.approx(MBIT, rel=0.1)


# -- what is sent


def test_a_link_that_was_never_measured_sends_all() -> None:
    assert Pace().withheld(0, 4, SLICE, time_s=0.5) == ()


def test_a_link_that_carries_a_share_in_time_sends_all_of_it() -> None:
    assert Pace(meter=meter(8 * MBIT)).withheld(0, 4, SLICE, time_s=0.5) == ()


def test_a_slow_link_sends_what_it_carries_in_time() -> None:
    pace = Pace(meter=meter(2 * MBIT))
    assert pace.withheld(0, 4, SLICE, time_s=1.3) == (2, 3)


def test_a_link_too_slow_for_a_slice_in_each_round_takes_every_few_turns() -> None:
    pace = Pace(meter=meter(0.5 * MBIT))
    counts = [sent(pace, r % 4, 4, time_s=1.0) for r in range(100)]  # 0.4 of a slice each
    assert set(counts) == {0, 1}
    assert sum(counts) == 40


@settings(max_examples=100)
@given(st.floats(0.05, 3.0), st.integers(2, 8), st.integers(1, 6))
@example(0.5, 2, 2)
def test_every_slice_of_every_fragment_has_its_turn_equally_often(
    carried: float, slices: int, fragments: int
) -> None:
    pace = Pace(meter=meter(carried * MBIT))
    turns: Counter[tuple[int, int]] = Counter()
    rounds = int(3 * fragments * slices / min(carried, 1)) + 2 * fragments
    for number in range(rounds):
        fragment = number % fragments
        held = pace.withheld(fragment, slices, SLICE, time_s=1.25)
        turns.update((fragment, i) for i in range(slices) if i not in held)
    assert len(turns) == fragments * slices
    for fragment in range(fragments):
        counts = [turns[fragment, i] for i in range(slices)]
        assert max(counts) - min(counts) <= 1


def test_turns_of_fragments_are_spread_over_the_rounds() -> None:
    pace = Pace(meter=meter(0.5 * MBIT))
    counts = [sent(pace, r % 4, 4, time_s=1.25) for r in range(80)]  # half a slice each
    assert max(sum(counts[i : i + 4]) for i in range(76)) <= 3


# -- a cap


def test_a_cap_is_planned_with_before_anything_was_measured() -> None:
    pace = Pace(1 * MBIT)
    assert sent(pace, 0, 4, time_s=2.5) == 2, "of a megabit each, in four fifths of the time"


def test_a_cap_is_no_promise_that_the_link_carries_it() -> None:
    pace = Pace(100 * MBIT, meter(1 * MBIT))
    assert pace.bits_s() == pytest.approx(1 * MBIT)
    assert pace.withheld(0, 4, SLICE, time_s=2.5, every_s=5.0)


def test_of_a_cap_is_left_what_the_others_need_of_the_result() -> None:
    free = Pace(1 * MBIT).withheld(0, 4, SLICE, time_s=4.0, every_s=100.0)
    tight = Pace(1 * MBIT).withheld(
        0, 4, SLICE, time_s=4.0, every_s=5.1
    )  # 4.08 megabits, 3 for results
    assert len(free) == 0
    assert len(tight) == 3


def test_a_cap_that_the_results_fill_sends_no_slices_and_does_not_fail() -> None:
    pace = Pace(0.1 * MBIT)
    assert all(len(pace.withheld(0, 4, SLICE, time_s=2.0, every_s=4.0)) == 4 for _ in range(20))

"""Deadlines follow arrivals: they neither spiral down, as late ones count, nor up, as none measures itself."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from runnel.node.deadlines import ArrivalWindow, Deadlines, Limits
from tests.support.members import PEERS

LIMITS = Limits(floor_s=0.5, ceiling_s=30.0, stall_s=30.0)


def window() -> ArrivalWindow:
    return ArrivalWindow(floor_s=0.5, ceiling_s=30.0)


def test_without_evidence_half_the_ceiling_is_waited() -> None:
    assert window().deadline_s() == 15.0
    assert ArrivalWindow(floor_s=4.0, ceiling_s=6.0).deadline_s() == 4.0


@given(st.lists(st.floats(-1.0, 1e6), max_size=200))
def test_a_deadline_stays_between_floor_and_ceiling(delays: list[float]) -> None:
    subject = window()
    for delay in delays:
        subject.arrived(delay)
    assert 0.5 <= subject.deadline_s() <= 30.0


@given(st.lists(st.floats(0.0, 30.0), min_size=4, max_size=64))
def test_a_deadline_is_twice_the_median_and_six_deviations(delays: list[float]) -> None:
    subject = window()
    for delay in delays:
        subject.arrived(delay)
    middle = median(delays)
    wanted = 2 * middle + 6 * median(abs(delay - middle) for delay in delays)
    assert subject.deadline_s() == min(max(wanted, 0.5), 30.0)


def test_old_arrivals_are_forgotten() -> None:
    subject = window()
    for _ in range(64):
        subject.arrived(30.0)
    assert subject.deadline_s() == 30.0
    for _ in range(64):
        subject.arrived(0.1)
    assert subject.deadline_s() == 0.5


def test_a_few_slow_arrivals_do_not_move_the_deadline_of_many_fast_ones() -> None:
    subject = window()
    for i in range(60):
        subject.arrived(20.0 if i % 6 == 0 else 0.2)
    assert subject.deadline_s() < 1.0


def rounds(deadlines: Deadlines, natural_s: float, link_s: float, count: int) -> list[bool]:
    """A slow member beside a fast one: it commits when done, or when it is hurried; whether in time."""
    rng, now, in_time = Random(5), 0.0, []
    for number in range(count):
        key, now = ("round", number), now + 60.0
        deadlines.half_committed(key, now)
        closes = deadlines.commits.deadline_s()
        delay = min(natural_s, deadlines.hurry_s) + link_s * rng.uniform(0.8, 1.2)
        in_time.append(delay <= closes)
        if in_time[-1]:
            deadlines.commits.arrived(delay)
        else:
            deadlines.too_late(key, PEERS[1], now + delay)
    return in_time


def test_a_hurried_member_does_not_drive_the_deadline_up() -> None:
    deadlines = Deadlines(LIMITS)
    in_time = rounds(deadlines, natural_s=1000.0, link_s=0.5, count=200)
    assert all(in_time[-100:])
    assert deadlines.commits.deadline_s() < 3.0


def test_a_mixture_of_done_and_hurried_members_does_not_drive_the_deadline_up() -> None:
    deadlines = Deadlines(LIMITS)
    for number in range(400):
        hurried = deadlines.hurry_s if number % 2 else 0.0
        deadlines.commits.arrived(hurried + 0.2)
    assert deadlines.commits.deadline_s() < 3.0


def test_late_members_pull_the_deadline_up_until_they_are_in_time() -> None:
    deadlines = Deadlines(LIMITS)
    for _ in range(64):
        deadlines.commits.arrived(0.05)
    assert deadlines.commits.deadline_s() == 0.5
    in_time = rounds(deadlines, natural_s=0.0, link_s=6.0, count=200)
    assert not any(in_time[:10])
    assert all(in_time[-100:])


def test_a_late_commitment_counts_once_however_often_it_is_repeated() -> None:
    deadlines = Deadlines(LIMITS)
    for number in range(4):
        deadlines.half_committed(number, 100.0 * number)
        for repetition in range(20):
            deadlines.too_late(number, PEERS[1], 100.0 * number + 2.0 + repetition)
    assert deadlines.commits.deadline_s() == 4.0


def test_commitments_to_rounds_that_nobody_remembers_do_not_count() -> None:
    deadlines = Deadlines(LIMITS)
    for number in range(100):
        deadlines.half_committed(number, 0.0)
    for number in range(50):
        deadlines.too_late(number, PEERS[1], 7.0)
        deadlines.too_late(1000 + number, PEERS[1], 7.0)
    assert deadlines.commits.deadline_s() == 15.0


def test_an_abort_takes_three_deadlines_of_data_or_of_the_whole_work() -> None:
    deadlines = Deadlines(LIMITS)
    for _ in range(8):
        deadlines.data.arrived(1.0)
    assert deadlines.abort_s == 45.0  # nobody knows yet how long the work takes
    deadlines.set_decided(0, 10.0)
    deadlines.finished(0, 10.5)
    assert deadlines.abort_s == 6.0
    for number in range(1, 9):
        deadlines.set_decided(number, 10.0)
        deadlines.finished(number, 13.0)
    assert deadlines.abort_s == 18.0


def test_a_round_is_timed_once_and_only_if_its_set_was_decided_here() -> None:
    deadlines = Deadlines(LIMITS)
    deadlines.finished("unknown", 5.0)
    assert deadlines.finish.deadline_s() == 15.0
    deadlines.set_decided("known", 0.0)
    deadlines.finished("known", 1.0)
    deadlines.finished("known", 9.0)
    assert deadlines.finish.deadline_s() == 2.0


def test_slices_are_waited_for_half_of_the_time_between_rounds_if_that_is_longer() -> None:
    deadlines = Deadlines(LIMITS)
    for _ in range(8):
        deadlines.data.arrived(0.1)
    assert deadlines.interval_s == 0.0
    assert deadlines.data_s == 0.5
    for _ in range(8):
        deadlines.moved(10.0)
    deadlines.moved(500.0)  # one pause is no rhythm
    assert deadlines.interval_s == 10.0
    assert deadlines.data_s == 5.0
    assert deadlines.abort_s >= 15.0
    for _ in range(8):
        deadlines.moved(500.0)
    assert deadlines.data_s == LIMITS.ceiling_s


def test_rounds_that_come_together_are_timed_by_their_windows() -> None:
    """Between them lies what their exchange takes: a slow link given half of that would get ever less."""
    apart, together = Deadlines(LIMITS), Deadlines(replace(LIMITS, together=4))
    for _ in range(3):
        for interval_s in (17.0, 1.0, 1.0, 1.0):
            apart.moved(interval_s)
            together.moved(interval_s)
    assert apart.interval_s == 1.0
    assert together.interval_s == 5.0
    assert together.sure_s == 2.5

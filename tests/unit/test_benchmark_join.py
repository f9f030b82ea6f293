"""Arithmetic of the joining benchmark: stages of a start, and which training counts for the donors' stall."""

from __future__ import annotations

import pytest

from benchmarks.join import Start, stall_share


def part(began_s: float, ended_s: float, stalled_s: float) -> dict[str, float]:
    return {"began_s": began_s, "ended_s": ended_s, "stalled_s": stalled_s}


def test_only_training_beside_a_join_counts_for_the_stall() -> None:
    parts = [part(0, 1, 0.5), part(1, 2, 0.1), part(2, 4, 0.2), part(4, 5, 0.9)]
    assert stall_share(parts, [(1.5, 3.0)]) == pytest.approx(0.3 / 3)
    assert stall_share(parts, [(0.2, 0.3), (4.5, 9.0)]) == pytest.approx(1.4 / 2)


def test_training_that_touches_two_joins_counts_once() -> None:
    parts = [part(0, 10, 1.0), part(10, 20, 3.0)]
    assert stall_share(parts, [(1, 2), (3, 4)]) == pytest.approx(0.1)


def test_without_any_training_nothing_is_stalled() -> None:
    assert stall_share([part(0, 1, 0.5)], [(2, 3)]) == 0


def test_stages_add_up_to_the_time_to_the_first_step() -> None:
    at_s = {"imported": 12.0, "built": 12.5, "joined": 15.0, "stepped": 15.25}
    start = Start(began_s=10.0, at_s=at_s, cpu_s=3.0, bytes_by_donor={"a": 1}, fetch_s=0.5)
    assert start.stages() == {"imported": 2.0, "built": 0.5, "joined": 2.5, "stepped": 0.25}
    assert start.seconds == 5.25


def test_a_process_without_a_swarm_has_no_stage_of_joining() -> None:
    at_s = {"imported": 12.0, "built": 12.5, "stepped": 13.0}
    start = Start(began_s=10.0, at_s=at_s, cpu_s=3.0, bytes_by_donor={}, fetch_s=0.0)
    assert start.stages() == {"imported": 2.0, "built": 0.5, "stepped": 0.5}

"""Arithmetic of the joining benchmark: stages of a start, and which training counts for the donors' stall."""

from __future__ import annotations

import pytest

from benchmarks.join import Start, stall_share
from runnel.node.events import InnerProgress, MergeApplied, PeerReady, PeerStarted, StateFetched


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


def test_a_start_is_read_from_the_events_of_a_journal() -> None:
    start = Start(began_s=10.0)
    for event in (
        PeerStarted(unix_s=12.5, peer="a", run="r"),
        StateFetched(
            unix_s=12.5, round=3, size_bytes=9, seconds=0.5, donors=("a",), bytes_by_donor={"a": 9}
        ),
        PeerReady(unix_s=13.0, round=3, members=2, seconds=1.0),
        InnerProgress(unix_s=13.25, step=1, round=3, loss=1.0, tokens=1, tokens_per_s=0.0, lr=0.1),
        InnerProgress(unix_s=19.0, step=10, round=3, loss=1.0, tokens=1, tokens_per_s=1.0, lr=0.1),
        MergeApplied(unix_s=20.0, round=3, fragment=0, included=False),
    ):
        start.take(event)
    assert start.stages() == {"started": 2.5, "ready": 0.5, "stepped": 0.25}
    assert (start.seconds, start.fetch_s, start.bytes_by_donor) == (3.25, 0.5, {"a": 9})
    assert not start.takes_part
    start.take(MergeApplied(unix_s=21.0, round=4, fragment=1, included=True))
    start.take(MergeApplied(unix_s=22.0, round=5, fragment=2, included=False))
    assert start.takes_part

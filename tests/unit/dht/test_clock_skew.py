"""The difference of clocks, from what peers said the time was."""

from __future__ import annotations

import math

import pytest

from runnel.dht.clock_skew import ClockSkew
from runnel.dht.identity import null_peer_id


def noted(*skews_s: float, limit_s: float = 3600.0) -> ClockSkew:
    skew = ClockSkew(limit_s=limit_s)
    for number, skew_s in enumerate(skews_s):
        skew.note(null_peer_id(number), 101.0 + skew_s, asked_s=100.0, answered_s=102.0)
    return skew


def test_nobody_asked_means_no_difference() -> None:
    assert noted().seconds == 0.0


def test_it_is_the_median_so_that_one_liar_moves_little() -> None:
    assert noted(1.0, 1.5, 1e9).seconds == 1.5


@pytest.mark.parametrize(("said", "counts"), [(1e300, 10.0), (-1e300, -10.0), (math.inf, 10.0)])
def test_nobody_counts_for_more_than_the_limit(said: float, counts: float) -> None:
    assert noted(said, limit_s=10.0).seconds == counts


def test_a_peer_counts_once_and_the_newest_word_counts() -> None:
    skew = noted(1.0, 2.0, 3.0)
    for _ in range(9):
        skew.note(null_peer_id(0), 9.0, asked_s=0.0, answered_s=0.0)
    assert skew.seconds == 3.0


def test_a_clock_that_is_off_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    noted(2.9)
    assert not caplog.records
    noted(120.0)
    assert "120 s behind" in caplog.text

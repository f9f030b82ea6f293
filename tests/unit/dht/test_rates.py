"""Buckets of tokens: bursts, rates, debts, and a bound on how many are remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.identity import null_peer_id
from runnel.dht.rates import Buckets, Rate

A, B = null_peer_id(1), null_peer_id(2)


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    buckets = Buckets(Rate(per_s=2, burst=5))
    assert [buckets.take(A, 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert buckets.take(B, 0.0)
    assert not buckets.take(A, 0.4)
    assert buckets.take(A, 0.6)
    assert not buckets.take(A, 0.6)


def test_debts_are_paid_by_waiting() -> None:
    buckets = Buckets(Rate(per_s=10, burst=20))
    assert buckets.spend(A, 15, 0.0) == 0
    assert buckets.spend(A, 25, 0.0) == pytest.approx(2.0)
    assert buckets.spend(A, 0, 2.0) == pytest.approx(0.0)
    assert buckets.spend(A, 1, 2.0, rate=Rate(per_s=1, burst=1)) == pytest.approx(1.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    buckets = Buckets(Rate(per_s=1, burst=1))
    assert buckets.take(A, 10.0)
    assert not buckets.take(A, 5.0)


def test_only_so_many_peers_are_remembered() -> None:
    buckets = Buckets(Rate(per_s=1, burst=1))
    for number in range(3000):
        buckets.take(null_peer_id(number), 0.0)
    assert len(buckets) == 1024


@pytest.mark.parametrize("rate", [(0.0, 5.0), (1.0, 0.5), (-1.0, 2.0)])
def test_rates_that_let_nothing_through_are_refused(rate: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="nothing"):
        Rate(*rate)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), min_size=1, max_size=30))
def test_whoever_waits_as_told_gets_the_rate_and_one_burst_at_most(
    asks: list[tuple[float, int]],
) -> None:
    rate = Rate(per_s=10, burst=30)
    buckets, now, spent, start = Buckets(rate), 0.0, 0, 0.0
    for pause_s, amount in asks:
        now += pause_s
        wait_s = buckets.spend(A, amount, now)
        spent += amount
        now += wait_s
        assert spent <= rate.burst + rate.per_s * (now - start) + 1e-6

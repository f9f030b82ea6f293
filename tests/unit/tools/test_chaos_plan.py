"""Who is struck when: a majority is always left alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.tools.chaos_plan import Kind, Strike, draw

PEERS = st.integers(3, 16)
SEEDS = st.integers(0, 10_000)


def struck_at(strikes: tuple[Strike, ...], moment_s: float) -> list[int]:
    return [s.peer for s in strikes if s.at_s <= moment_s < s.over_s]


@given(SEEDS, PEERS)
def test_a_majority_is_left_alone_at_any_time(seed: int, peers: int) -> None:
    strikes = draw(seed, peers=peers, kinds=tuple(Kind), count=40)
    assert len(strikes) == 40
    for strike in strikes:
        down = struck_at(strikes, strike.at_s)
        assert len(set(down)) == len(down)
        assert 2 * (peers - len(down)) > peers


@given(SEEDS, PEERS, st.floats(10, 600))
def test_all_strikes_are_over_in_time_and_in_order(seed: int, peers: int, lasts_s: float) -> None:
    strikes = draw(seed, peers=peers, kinds=(Kind.KILL, Kind.FREEZE), lasts_s=lasts_s)
    assert all(s.over_s <= lasts_s and s.kind in (Kind.KILL, Kind.FREEZE) for s in strikes)
    assert all(a.at_s < b.at_s for a, b in pairwise(strikes))


def test_equal_seeds_give_equal_strikes_and_others_do_not() -> None:
    first, again, other = (draw(seed, peers=5, kinds=tuple(Kind), count=9) for seed in (7, 7, 8))
    assert first == again != other


def test_what_has_no_end_or_no_majority_is_refused() -> None:
    with pytest.raises(ValueError, match="three peers"):
        draw(1, peers=2, kinds=tuple(Kind), count=3)
    with pytest.raises(ValueError, match="an end"):
        draw(1, peers=5, kinds=tuple(Kind))
    with pytest.raises(ValueError, match="one kind"):
        draw(1, peers=5, kinds=(), count=3)

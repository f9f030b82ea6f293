"""Which scalars are looked at, and what is said of them: no choice, no favourites, no honest rounding refuted."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.types import Decision
from runnel.verification.spot_checks import (
    BLIND_CODES,
    CODES_PER_SPREAD,
    SPREAD_SHARE,
    draw_scalars,
    judge_scalar,
    tolerance_codes,
)

COUNTS = st.lists(st.integers(0, 6), max_size=6)
NARROW = SPREAD_SHARE * CODES_PER_SPREAD


@given(st.binary(max_size=64), COUNTS, st.integers(1, 20), st.floats(0, 1))
def test_what_is_drawn_is_there_once_and_follows_from_the_secret(
    secret: bytes, counts: list[int], own: int, share: float
) -> None:
    drawn = draw_scalars(secret, counts, own=own, share=share)
    assert drawn == draw_scalars(secret, counts, own=own, share=share)
    assert len(drawn) <= own
    assert sorted(set(drawn)) == list(drawn)
    assert all(0 <= number < counts[index] for index, number in drawn)
    if share == 1 and any(counts):
        assert drawn


def test_all_scalars_are_drawn_alike_and_as_many_as_the_share_says() -> None:
    seen: Counter[tuple[int, int]] = Counter()
    for turn in range(4000):
        seen.update(draw_scalars(b"%d" % turn, [2, 0, 3], own=4, share=0.25))
    assert set(seen) == {(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)}
    assert 0.85 * 4000 < sum(seen.values()) < 4000  # some twice, which counts once
    assert max(seen.values()) < 1.2 * min(seen.values())


def test_a_share_of_nothing_and_nobody_to_look_at_draw_nothing() -> None:
    assert draw_scalars(b"x", [5, 5], own=64, share=0.0) == ()
    assert draw_scalars(b"x", [], own=4, share=1.0) == ()
    assert draw_scalars(b"x", [0], own=4, share=1.0) == ()


@given(st.floats(-300, 300), st.floats(-1, 1))
def test_what_rounding_and_another_machine_may_do_is_accepted(wanted: float, off: float) -> None:
    published = round(max(-127.0, min(127.0, wanted)))
    again = wanted + off * NARROW
    assert judge_scalar(published, again, NARROW).decision is Decision.ACCEPT
    if abs(wanted) < 127:
        assert judge_scalar(published + 2, again, NARROW).decision is Decision.REJECT


@pytest.mark.parametrize("found", [math.nan, math.inf, -math.inf])
def test_a_machine_that_finds_no_number_says_nothing(found: float) -> None:
    assert judge_scalar(5, found, NARROW).decision is Decision.ABSTAIN


def test_a_tolerance_as_wide_as_the_scalars_says_nothing() -> None:
    assert tolerance_codes(2.0, 1e-3, 1 / 32) < 1
    blind = tolerance_codes(10.0, 1e-6, 1 / 32)
    assert blind > BLIND_CODES
    assert judge_scalar(100, -100.0, blind).decision is Decision.ABSTAIN
    assert tolerance_codes(0.0, 1e-3, 1.0) == NARROW

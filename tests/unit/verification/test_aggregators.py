"""Aggregators: coefficients, against plain means of tiny cases, and what one liar can do."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ConfigError
from runnel.kernels import Float32
from runnel.verification import AGGREGATORS, aggregator_named

Rows = Sequence[tuple[float, float]]

every_aggregator = pytest.mark.parametrize("name", list(AGGREGATORS))
positive = st.floats(2.0**-20, 2.0**40, width=32)
lengths = st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**100, width=32))
peers = st.lists(st.tuples(positive, lengths), min_size=1, max_size=12)


def coefficients(name: str, rows: Rows) -> Float32:
    weights, norms = np.array(rows, np.float32).reshape(-1, 2).T
    result = aggregator_named(name).coefficients(weights.copy(), norms.copy())
    assert result.dtype == np.float32
    assert result.shape == (len(rows),)
    return result


def combined(factors: Float32, contributions: npt.NDArray[np.float64]) -> Float32:
    total: Float32 = (factors.astype(np.float64)[:, None] * contributions).sum(axis=0)
    return total


def test_the_weighted_mean_is_that_of_a_plain_reference() -> None:
    contributions = np.array([[1.0, 2.0], [3.0, -4.0], [5.0, 0.0]])
    weights = [1.0, 2.0, 5.0]
    factors = coefficients("weighted-mean", [(w, 1.0) for w in weights])
    expected = np.average(contributions, axis=0, weights=weights)
    assert combined(factors, contributions) == pytest.approx(expected, rel=1e-6)


def test_the_clipped_mean_is_that_of_contributions_cut_to_the_median_norm() -> None:
    contributions = np.array([[3.0, 4.0], [0.0, 1.0], [1e9, 0.0]])
    weights = np.array([1.0, 2.0, 1.0])
    norms = np.linalg.norm(contributions, axis=1)
    clipped = contributions * np.minimum(1, np.median(norms) / norms)[:, None]
    expected = np.average(clipped, axis=0, weights=weights)
    factors = coefficients("clip-mean", list(zip(weights, norms, strict=True)))
    assert combined(factors, contributions) == pytest.approx(expected, rel=1e-6)


def test_of_two_peers_the_shorter_contribution_sets_the_length() -> None:
    assert coefficients("clip-mean", [(1, 2), (1, 8)]).tolist() == [0.5, 0.125]
    assert coefficients("clip-mean", [(1, 8), (3, 2)]).tolist() == [0.0625, 0.75]


def test_of_four_peers_the_lower_of_the_two_in_the_middle_sets_the_length() -> None:
    factors = coefficients("clip-mean", [(1, 1), (1, 2), (1, 4), (1, 8)])
    assert factors.tolist() == [0.25, 0.25, 0.125, 0.0625]


def test_a_contribution_of_norm_zero_is_not_divided_by() -> None:
    assert coefficients("clip-mean", [(1, 0), (1, 0), (2, 5)]).tolist() == [0.25, 0.25, 0]
    assert coefficients("clip-mean", [(1, 0), (1, 3), (2, 3)]).tolist() == [0.25, 0.25, 0.5]


@every_aggregator
@given(rows=peers, order=st.randoms(use_true_random=False))
def test_coefficients_move_with_their_peers(name: str, rows: Rows, order: random.Random) -> None:
    index = list(range(len(rows)))
    order.shuffle(index)
    shuffled = coefficients(name, [rows[i] for i in index])
    assert shuffled.tobytes() == coefficients(name, rows)[index].tobytes()


@every_aggregator
@given(rows=peers, exponent=st.integers(-20, 20))
def test_only_ratios_of_weights_matter(name: str, rows: Rows, exponent: int) -> None:
    scaled = [(weight * 2.0**exponent, length) for weight, length in rows]
    assert coefficients(name, scaled).tobytes() == coefficients(name, rows).tobytes()
    tripled = [(weight * 3, length) for weight, length in rows]
    assert coefficients(name, tripled) == pytest.approx(coefficients(name, rows), rel=1e-5)


@given(rows=peers)
def test_shares_sum_to_one_and_clipping_only_shortens(rows: Rows) -> None:
    shares = coefficients("weighted-mean", rows).astype(np.float64)
    assert shares.sum() == pytest.approx(1, rel=1e-6)
    assert np.all(coefficients("clip-mean", rows) <= coefficients("weighted-mean", rows))


@given(
    honest=st.lists(
        st.tuples(positive, st.floats(2.0**-10, 2.0**10, width=32)), min_size=2, max_size=9
    ),
    liar=st.tuples(positive, st.floats(2.0**20, 2.0**120, width=32)),
)
def test_one_huge_contribution_adds_no_more_than_the_longest_honest_one_times_its_share(
    honest: Rows, liar: tuple[float, float]
) -> None:
    factors = coefficients("clip-mean", [*honest, liar]).astype(np.float64)
    share = liar[0] / math.fsum([liar[0], *(weight for weight, _ in honest)])
    assert factors[-1] * liar[1] <= share * max(length for _, length in honest) * (1 + 1e-6)


@given(rows=peers)
def test_as_many_liars_as_tolerated_leave_the_result_no_longer_than_the_longest_honest_one(
    rows: Rows,
) -> None:
    aggregator = aggregator_named("clip-mean")
    liars = aggregator.tolerates(len(rows))
    assert liars == len(rows) // 2
    honest = rows[liars:]
    worst = coefficients("clip-mean", [(w, 2.0**110) for w, _ in rows[:liars]] + list(honest))
    norms = np.array([2.0**110] * liars + [length for _, length in honest])
    longest = max(length for _, length in honest)
    assert (worst.astype(np.float64) * norms).sum() <= longest * (1 + 1e-5)


def test_a_plain_mean_tolerates_nobody() -> None:
    assert aggregator_named("weighted-mean").tolerates(9) == 0


def test_a_contribution_beyond_all_measure_gets_nothing_rather_than_a_subnormal_coefficient() -> (
    None
):
    assert coefficients("clip-mean", [(1, 1), (1, 1), (1, 2.0**127)]).tolist()[2] == 0


@every_aggregator
def test_nobody_gives_no_coefficients(name: str) -> None:
    assert coefficients(name, []).size == 0


@every_aggregator
@pytest.mark.parametrize(
    "row",
    [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (1, -1), (1, math.nan), (1, math.inf)],
)
def test_weights_and_norms_that_screening_would_refuse_are_refused(
    name: str, row: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="peer 1 has weight"):
        coefficients(name, [(1, 1), row])


@every_aggregator
def test_arrays_of_different_lengths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2 weights and 3 norms"):
        aggregator_named(name).coefficients(np.ones(2, np.float32), np.ones(3, np.float32))


@every_aggregator
def test_aggregators_know_their_names(name: str) -> None:
    assert aggregator_named(name).name == name


def test_an_unknown_aggregator_is_a_config_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'krum'.*weighted-mean, clip-mean"):
        aggregator_named("krum")

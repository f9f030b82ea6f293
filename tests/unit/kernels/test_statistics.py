"""Sums in a fixed order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.kernels import Float32, first_non_finite, norm, sum_of_squares

BOTH = pytest.mark.parametrize("by", ["numba", "reference"])


def in_lanes(values: Float32) -> float:
    """The definition, one value at a time."""
    lanes = [0.0] * 64
    for index, value in enumerate(values.tolist()):
        lanes[index % 64] += value * value
    total = 0.0
    for lane in lanes:
        total += lane
    return total


@BOTH
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 64 * 4096 + 65, 64 * 8192])
def test_the_sum_is_that_of_sixty_four_lanes(by: str, size: int) -> None:
    values = (np.arange(size, dtype=np.float32) * np.float32(0.618034)) % np.float32(1)
    assert sum_of_squares(values, by=by) == in_lanes(values)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300))
def test_the_sum_is_the_same_in_both_implementations_and_near_the_exact_one(
    numbers: list[float],
) -> None:
    values = np.array(numbers, np.float32)
    total = sum_of_squares(values, by="numba")
    assert total == sum_of_squares(values, by="reference") == in_lanes(values)
    assert total == pytest.approx(math.fsum(x * x for x in values.tolist()), rel=1e-12)


def test_a_norm_is_a_square_root_and_survives_the_largest_floats() -> None:
    assert norm(np.array([3, -4], np.float32)) == 5.0
    assert norm(np.zeros(0, np.float32)) == 0.0
    largest = float(np.finfo(np.float32).max)
    assert norm(np.full(4, largest, np.float32)) == 2 * largest
    assert math.isnan(norm(np.array([1, np.nan], np.float32)))


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1023, 1024, 2999])
def test_the_first_value_that_is_not_finite_is_found(by: str, bad: float, index: int) -> None:
    values = np.full(3000, np.finfo(np.float32).max, np.float32)
    assert first_non_finite(values, by=by) == -1
    values[index] = bad
    values[-1] = np.nan
    assert first_non_finite(values, by=by) == index


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        norm(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32"):
        first_non_finite(np.zeros((2, 2), np.float32))

"""Sums in a fixed order, so that every machine finds the same norm, and the search for NaN and Inf."""

from __future__ import annotations

import math

from runnel.kernels.arrays import require_vector
from runnel.kernels.dispatch import implementation
from runnel.kernels.signatures import Float32


def sum_of_squares(values: Float32, *, by: str | None = None) -> float:
    """The sum of squares in float64; NaN or Inf where the values hold one.

    Value i goes to lane ``i mod 64``; each lane adds its squares (exact in float64) by rising
    index, then the lanes are added by rising number, starting from 0. `by` forces an implementation.

    Raises:
        ValueError: not a contiguous one-dimensional float32 array.
    """
    require_vector(values, "values")
    return float(implementation(by).elements.sum_of_squares(values))


def norm(values: Float32, *, by: str | None = None) -> float:
    """The Euclidean norm: the square root, correctly rounded, of `sum_of_squares`."""
    return math.sqrt(sum_of_squares(values, by=by))


def first_non_finite(values: Float32, *, by: str | None = None) -> int:
    """The index of the first NaN or Inf, or -1. One pass of reading.

    Raises:
        ValueError: not a contiguous one-dimensional float32 array.
    """
    require_vector(values, "values")
    return int(implementation(by).elements.first_non_finite(values))

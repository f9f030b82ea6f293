"""Aggregators that are linear in the contributions: each gets one coefficient, from weights and norms.

To add one: a class behind `Aggregator` and one entry in `AGGREGATORS`. Coefficients are computed in
float64 from exactly rounded sums, so they depend neither on the machine nor on the order of peers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from runnel.errors import ConfigError
from runnel.protocols import Aggregator, Float32

_NEGLIGIBLE = 2.0**-100
"""Smaller coefficients become 0: processes differ in whether they flush subnormal numbers."""


class WeightedMean:
    """The mean weighted by tokens. Any one peer can move the result anywhere."""

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "weighted-mean"

    def coefficients(self, weights: Float32, norms: Float32) -> Float32:
        """Weight / sum of weights, float32 [peers].

        Raises:
            ValueError: not one finite positive weight and finite norm (0 or more) for each peer.
        """
        return _rounded(_shares(weights, norms))

    def tolerates(self, num_peers: int) -> int:
        """None."""
        del num_peers
        return 0


class ClipMean:
    """Clips every contribution to the median norm, then takes the mean weighted by tokens.

    The result is never longer than the median norm, which for an even number of peers is the lower
    one of the two in the middle (of two peers: the shorter contribution). A liar therefore shifts
    the result by no more than its share of the weight times that norm. Source: median-norm clipping
    of pseudo-gradients, as in templar's outer step.
    """

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "clip-mean"

    def coefficients(self, weights: Float32, norms: Float32) -> Float32:
        """Weight / sum of weights * min(1, median norm / norm), float32 [peers]; a norm of 0 is not clipped.

        Raises:
            ValueError: not one finite positive weight and finite norm (0 or more) for each peer.
        """
        shares, lengths = _shares(weights, norms), _floats(norms)
        if not lengths:
            return _rounded(shares)
        median = sorted(lengths)[(len(lengths) - 1) // 2]
        return _rounded(
            [
                share if length <= median else share * (median / length)
                for share, length in zip(shares, lengths, strict=True)
            ]
        )

    def tolerates(self, num_peers: int) -> int:
        """Half: then the lower median norm is still no longer than the longest honest contribution."""
        return num_peers // 2


AGGREGATORS: Mapping[str, Callable[[], Aggregator]] = {
    "weighted-mean": WeightedMean,
    "clip-mean": ClipMean,
}
"""Every aggregator by the name under which manifests choose it."""


def aggregator_named(name: str) -> Aggregator:
    """The aggregator called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in AGGREGATORS:
        raise ConfigError(f"aggregator {name!r} is unknown; known ones: {', '.join(AGGREGATORS)}")
    return AGGREGATORS[name]()


def _shares(weights: Float32, norms: Float32) -> list[float]:
    """Each weight's share of their sum, after a check of both arrays."""
    numbers, lengths = _floats(weights), _floats(norms)
    if len(numbers) != len(lengths):
        raise ValueError(
            f"{len(numbers)} weights and {len(lengths)} norms, expected one pair a peer"
        )
    for index, (weight, length) in enumerate(zip(numbers, lengths, strict=True)):
        if not (0 < weight < math.inf and 0 <= length < math.inf):
            raise ValueError(
                f"peer {index} has weight {weight} and norm {length}, "
                "expected a finite positive weight and a finite norm"
            )
    total = math.fsum(numbers)
    return [weight / total for weight in numbers]


def _floats(array: Float32) -> list[float]:
    return [float(x) for x in array]


def _rounded(coefficients: list[float]) -> Float32:
    """As float32, with 0 for what is negligible."""
    return np.array([c if c >= _NEGLIGIBLE else 0.0 for c in coefficients], np.float32)

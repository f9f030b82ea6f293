"""Scalars as one byte with a scale that all peers derive from the bytes they have seen.

A scalar g becomes ``c = clip(round(32 * g / s), -127, 127)`` with s = 2^(j/4). The exponent j follows
the middle magnitude of the accepted codes, in integers and four constants, so that all agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from runnel.errors import ConfigError
from runnel.optim.seed_updates import UNIT_SHIFT

LARGEST_CODE = 127
CODES_PER_SCALE = 32
MAX_EXPONENT = 400
"""Scales reach from 2^-100 to 2^100."""

_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(k/4)
_LOW, _HIGH = 16, 28  # the middle magnitude of codes stays between them: 21.6 for Gaussian scalars
_FARTHEST = 8  # quarters at once: a factor of 4
_ENOUGH, _KEPT = 16, 64
_CLIP_DEVIATIONS = 5


@dataclass(frozen=True, slots=True)
class ByteScale:
    """A scale and the magnitudes that will move it.

    Attributes:
        exponent: j.
        recent: magnitudes of the codes accepted since j changed, the last 64.
    """

    exponent: int = 0
    recent: tuple[int, ...] = ()

    @property
    def value(self) -> float:
        """The scale s, the same float64 on every machine."""
        return scale_value(self.exponent)

    def code_of(self, scalar: float) -> int | None:
        """The byte to send, or nothing for NaN and infinity."""
        return code_of(scalar, self.exponent)

    def clipped(self, codes: Sequence[int]) -> tuple[int, ...]:
        """Codes with outliers set to five times the median magnitude of these and the recent ones.

        Scalars of random directions lie around zero, so that the median magnitude is their deviation
        (MAD). With fewer than five magnitudes nothing is clipped.

        Raises:
            ValueError: a code beyond +-127.
        """
        if any(abs(code) > LARGEST_CODE for code in codes):
            raise ValueError(f"codes {list(codes)}, expected -127 to 127")
        known = [*self.recent, *(abs(code) for code in codes)]
        if len(known) < _CLIP_DEVIATIONS:
            return tuple(codes)
        limit = _CLIP_DEVIATIONS * max(1, median_low(known))
        return tuple(max(-limit, min(limit, code)) for code in codes)

    def after(self, codes: Sequence[int]) -> ByteScale:
        """The scale for the next step, from the codes that were accepted in this one, in any order."""
        recent = (*self.recent, *sorted(abs(code) for code in codes))[-_KEPT:]
        if len(recent) < _ENOUGH:
            return ByteScale(self.exponent, recent)
        quarters = _quarters_off(median_low(recent))
        exponent = max(-MAX_EXPONENT, min(MAX_EXPONENT, self.exponent + quarters))
        return ByteScale(exponent, recent if exponent == self.exponent else ())


def scale_value(exponent: int) -> float:
    """2^(exponent / 4) to the nearest float64 of four constants: no machine computes a power."""
    return math.ldexp(_QUARTERS[exponent % 4], exponent // 4)


def code_of(scalar: float, exponent: int) -> int | None:
    """The byte of a scalar under a scale, or nothing for NaN and infinity."""
    if not math.isfinite(scalar):
        return None
    wanted = scalar / scale_value(exponent) * CODES_PER_SCALE
    return round(max(-float(LARGEST_CODE), min(float(LARGEST_CODE), wanted)))


def exponent_for(magnitude: float) -> int:
    """The exponent that gives scalars of this median magnitude codes around 22; 0 magnitude gives the least.

    For scales that are sent along: it computes a logarithm, so only its sender need know it.
    """
    if not magnitude > 0:
        return -MAX_EXPONENT
    wanted = round(4 * math.log2(magnitude / 0.6745))
    return int(max(-MAX_EXPONENT, min(MAX_EXPONENT, wanted)))


def unit_of(lr: float, exponent: int, count: int) -> int:
    """What one code moves the weights, in units of 2^-28: round(lr * s * 2^28 / (32 * count)).

    Below 16 rounding shows: then the learning rate is too small for these weights.

    Args:
        lr: learning rate of the step.
        exponent: of the scale of its codes.
        count: how many scalars are averaged, at least 1.

    Raises:
        ConfigError: the learning rate moves weights by more than their range.
    """
    unit = round(lr * scale_value(exponent) * 2.0**UNIT_SHIFT / (CODES_PER_SCALE * count))
    if not 0 <= unit < 1 << 24:
        raise ConfigError(
            f"learning rate {lr:g} with scalars around {scale_value(exponent):.3g} moves a weight by"
            " more than 8 in a step, or below 0: use a smaller one"
        )
    return unit


def _quarters_off(middle: int) -> int:
    """By how many quarters of a doubling the exponent must move for this middle magnitude."""
    if middle == 0 or middle >= LARGEST_CODE:
        return -_FARTHEST if middle == 0 else _FARTHEST
    off, value = 0, float(middle)
    while value > _HIGH:
        value, off = value / _QUARTERS[1], off + 1
    while value < _LOW:
        value, off = value * _QUARTERS[1], off - 1
    return max(-_FARTHEST, min(_FARTHEST, off))

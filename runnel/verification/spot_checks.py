"""Whether somebody's scalar is what its direction and its batch give: whom to look at, and what to say. Pure.

A scalar of a shared-seed run follows from public values: the weights before the round, the direction and
the batch. So anybody can compute it again. It was published as a byte, and machines round losses
differently in their last digits; what lies further apart than that is refuted. A verdict is one
machine's word: whoever wants to believe it computes the scalar a third time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from runnel.hashing import digest
from runnel.types import Decision, Verdict

CHECK = "spot-check"

CODES_PER_SPREAD = 32
"""A scalar as far from zero as they usually are has this code."""
LARGEST_CODE = 127
SPREAD_SHARE = 1e-3
"""How far apart, in parts of the spread, two machines may find a scalar whose losses are float32."""
LOSS_ROUNDINGS = 16
"""And how many roundings of float32 apart its losses, which weighs more where epsilon is small."""
BLIND_CODES = 16.0
"""From half a spread on a tolerance says nothing any more."""

_ROUNDING = 2.0**-23
_DRAW_CONTEXT = b"runnel.spot-checks.1"


def draw_scalars(
    secret: bytes, counts: Sequence[int], *, own: int, share: float
) -> tuple[tuple[int, int], ...]:
    """Which scalars to compute again: distinct (contribution, place in it), ascending.

    For each of `own` scalars one is drawn with a chance of `share`, from all alike. So a peer spends
    that share of its forward passes on others, and of all scalars of a swarm as many are looked at.

    Args:
        secret: of the drawer and this round; nobody else can know before what it draws.
        counts: how many scalars each contribution of another peer has.
        own: how many a contribution of the drawer has.
        share: 0 to 1.
    """
    ends = np.cumsum(np.array(counts, np.int64))
    total = int(ends[-1]) if ends.size else 0
    if not total:
        return ()
    stream = blake3(_DRAW_CONTEXT, key=digest(secret)).digest(length=16 * own)
    words = np.frombuffer(stream, "<u8").reshape(own, 2).tolist()
    drawn = {second % total for first, second in words if first < share * 2.0**64}
    found = []
    for place in sorted(drawn):
        index = int(np.searchsorted(ends, place, side="right"))
        found.append((index, place - int(ends[index]) + counts[index]))
    return tuple(found)


def tolerance_codes(loss: float, epsilon: float, unit: float) -> float:
    """How far from its byte a scalar may be found by another machine, beyond what the byte rounds off.

    Args:
        loss: the larger of its two losses.
        epsilon: their distance from the weights.
        unit: the scalar whose code is 1.
    """
    rounded = LOSS_ROUNDINGS * _ROUNDING * abs(loss) / epsilon
    return max(SPREAD_SHARE * CODES_PER_SPREAD, rounded / unit)


def judge_scalar(published: int, recomputed: float, tolerance: float) -> Verdict:
    """Whether a published code is that of the scalar that was computed again.

    Args:
        published: the code, -127 to 127.
        recomputed: the scalar in units of codes, before it is rounded.
        tolerance: from `tolerance_codes`.
    """
    if not math.isfinite(recomputed) or tolerance >= BLIND_CODES:
        return Verdict(Decision.ABSTAIN, CHECK, "this machine cannot say what it should be")
    nearest = max(-float(LARGEST_CODE), min(float(LARGEST_CODE), recomputed))
    if abs(published - nearest) <= 0.5 + tolerance:
        return Verdict(Decision.ACCEPT, CHECK)
    reason = f"code {published}, computed again {recomputed:.2f}, tolerance {0.5 + tolerance:.2f}"
    return Verdict(Decision.REJECT, CHECK, reason)

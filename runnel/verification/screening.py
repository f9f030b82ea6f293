"""Gates that a contribution passes before it counts. Each is pure and gives a verdict with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable

from runnel.types import Decision, Verdict

NORM_TOLERANCE = 1e-3
"""Relative difference allowed between a claimed norm and the decoded one."""


def check_weight(weight: float, *, cap: float) -> Verdict:
    """Gate ``weight``: positive, finite, at most `cap` (tokens)."""
    if not math.isfinite(weight) or weight <= 0:
        return _reject("weight", f"weight is {weight}, expected a positive number")
    if weight > cap:
        return _reject("weight", f"weight is {weight:.6g}, the run allows at most {cap:.6g}")
    return _accept("weight")


def check_norm_claim(claimed: float, decoded: float) -> Verdict:
    """Gate ``norm``: the committed norm is that of the decoded values, within `NORM_TOLERANCE` of it.

    Args:
        claimed: the norm in the commitment.
        decoded: `runnel.kernels.norm` of what was decoded.
    """
    if not (math.isfinite(claimed) and math.isfinite(decoded)) or claimed < 0:
        return _reject(
            "norm", f"norm claimed as {claimed}, decoded {decoded}, expected finite norms"
        )
    if abs(claimed - decoded) > NORM_TOLERANCE * decoded:
        return _reject("norm", f"norm claimed as {claimed:.6g}, decoded {decoded:.6g}")
    return _accept("norm")


def first_refusal(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The first verdict that is not an acceptance, or None. Later ones are not asked for."""
    return next((verdict for verdict in verdicts if not verdict.accepted), None)


def _accept(check: str) -> Verdict:
    return Verdict(Decision.ACCEPT, check)


def _reject(check: str, reason: str) -> Verdict:
    return Verdict(Decision.REJECT, check, reason)

"""Who may be believed: gates on contributions, and aggregators that bound what a liar can do.

The names are imported when first used: agreement needs no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.verification.aggregators import AGGREGATORS, aggregator_named
    from runnel.verification.screening import (
        NORM_TOLERANCE,
        check_norm_claim,
        check_weight,
        first_refusal,
    )

__all__ = [
    "AGGREGATORS",
    "NORM_TOLERANCE",
    "aggregator_named",
    "check_norm_claim",
    "check_weight",
    "first_refusal",
]

_HOMES = {
    "AGGREGATORS": "runnel.verification.aggregators",
    "NORM_TOLERANCE": "runnel.verification.screening",
    "aggregator_named": "runnel.verification.aggregators",
    "check_norm_claim": "runnel.verification.screening",
    "check_weight": "runnel.verification.screening",
    "first_refusal": "runnel.verification.screening",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})

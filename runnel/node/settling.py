"""At the start of a run: what its settings leave to a budget is chosen for the model at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from runnel.node.budget import settle
from runnel.node.entrance import Entrance
from runnel.node.manifest_patterns import AUTO
from runnel.node.place import Local

logger = logging.getLogger(__name__)

Pace = Callable[[], float]


def settle_place(entrance: Entrance, numel: int, pace: Pace | None) -> None:
    """Chooses what the spec of a run that is founded here leaves to its budget, if anything, and says what.

    Args:
        entrance: its spec has nothing open afterwards.
        numel: exchanged values.
        pace: measures the seconds of an inner step on this machine; None if nobody can.

    Raises:
        ConfigError: see `runnel.node.budget.settle`.
    """
    place = entrance.place
    if entrance.spec.outer.codec != AUTO or not isinstance(place, Local):
        return
    settled = settle(place.spec, numel, None if pace is None else pace())
    logger.info("%s", settled.line())
    entrance.place = replace(place, spec=settled.spec)

"""At the start of a run: what its settings leave to a budget is chosen for the model at hand."""

from __future__ import annotations

import logging
from dataclasses import replace

from runnel.node.budget import settle
from runnel.node.entrance import Entrance
from runnel.node.manifest_spec import RunSpec
from runnel.node.place import Local

logger = logging.getLogger(__name__)


def settle_place(entrance: Entrance, numel: int, step_s: float | None) -> RunSpec:
    """Chooses what the spec of a run that starts here leaves to its budget, and says what; the spec then.

    Raises:
        ConfigError: see `runnel.node.budget.settle`.
    """
    place = entrance.place
    assert isinstance(place, Local)  # only whoever founds a run has something to choose
    settled = settle(place.spec, numel, step_s)
    logger.info("%s", settled.line())
    entrance.place = replace(place, spec=settled.spec)
    return settled.spec

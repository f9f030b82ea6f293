"""At the start of a run: what its settings leave open is chosen for the model and the machine at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runnel.errors import ConfigError
from runnel.node.budget import settle
from runnel.node.entrance import Entrance
from runnel.node.manifest_patterns import AUTO
from runnel.node.manifest_sections import MAX_SEED_LR
from runnel.node.place import Local
from runnel.optim.seed_rate import rate_for

if TYPE_CHECKING:
    from runnel.node.manifest_spec import RunSpec

logger = logging.getLogger(__name__)

_WALK_SCALARS = 4
"""A walk of FedKSeed takes one scalar a step, and is averaged with those of the other members."""


@dataclass(frozen=True, slots=True)
class Trials:
    """What can be tried of a run's training before it begins.

    Attributes:
        step_s: the seconds of an inner step on this machine.
        bend: how much the loss bends along random directions, see `runnel.optim.seed_rate.measure_bend`.
    """

    step_s: Callable[[], float]
    bend: Callable[[], float]


def settle_place(entrance: Entrance, numel: int, trials: Trials | None) -> None:
    """Chooses what the spec of a run that is founded here leaves open, if anything, and says what.

    Args:
        entrance: its spec has nothing open afterwards.
        numel: exchanged values.
        trials: of its training; None if nobody can try.

    Raises:
        ConfigError: see `runnel.node.budget.settle`; or there is no learning rate to be found.
    """
    place = entrance.place
    if not isinstance(place, Local):
        return
    if entrance.spec.outer.codec == AUTO:
        settled = settle(place.spec, numel, None if trials is None else trials.step_s())
        logger.info("%s", settled.line())
        entrance.place = place = replace(place, spec=settled.spec)
    if place.spec.seeds.is_on and place.spec.seeds.lr == 0:
        entrance.place = replace(place, spec=_with_rate(place.spec, trials))


def _with_rate(spec: RunSpec, trials: Trials | None) -> RunSpec:
    if trials is None:
        raise ConfigError(
            "seeds.lr is 0, which `runnel launch` measures for the built-in model and those of kind hf: set"
            " it, to a thousandth for some ten thousand weights and less for more"
        )
    seeds, bend = spec.seeds, trials.bend()
    is_spsa = seeds.method == "spsa"
    scalars, per = (seeds.probes, "member") if is_spsa else (_WALK_SCALARS, "step")
    lr = rate_for(bend, scalars)
    if lr > MAX_SEED_LR:
        logger.warning(
            "a loss that bends as little as this one would take steps of %g, and seeds.lr is at most %g: is the"
            " model far from what it is to learn, or the loss nearly flat?",
            lr,
            MAX_SEED_LR,
        )
        lr = float(MAX_SEED_LR)
    logger.info(
        "the loss bends by %.2g along random directions: seeds.lr is %g%s",
        bend,
        lr,
        " for each member's scalars" if is_spsa else "",
    )
    return spec.model_copy(update={"seeds": seeds.model_copy(update={"lr": lr, "lr_per": per})})

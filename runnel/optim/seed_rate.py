"""A learning rate for steps along random directions, from how much the loss bends.

A step along n directions z_i with slopes g_i changes the loss by ``-lr * |G|^2`` (the mean over directions: what
descending along the true gradient G gains) plus ``lr^2 / (2 n) * E[g^2] * tr(H)`` (what the directions' noise costs;
H holds the second derivatives). The best rate is ``n / tr(H)`` times ``|G|^2 / E[g^2]``, the part of a
slope that other batches share; an eighth was the best, or a quarter of the best, on what was tried
(docs/spsa.md). For signs, tr(H) is the mean of z' H z, which three losses give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runnel.errors import ConfigError
from runnel.optim.fixed_point import Probe
from runnel.optim.fixed_point_model import FixedPointModel, master_of
from runnel.optim.seed_updates import UNIT_SHIFT
from runnel.optim.spsa_loss import Loss, epsilon_amount, loss_value, require_deterministic

if TYPE_CHECKING:
    from torch import nn

    from runnel.optim.fixed_point import Key

_SHARED_SLOPE = 1 / 8
_DIGITS = 2


def measure_bend(model: nn.Module, losses: Sequence[Loss], *, key: Key, epsilon: float) -> float:
    """tr(H) over the trainable parameters: the mean over one direction for each loss.

    Afterwards the model holds its weights, rounded as a run of shared seeds rounds them (`master_of`). Three forward passes for each loss; with eight the mean was within a twentieth of that of 48.

    Args:
        model: on any device; what draws random numbers is refused.
        losses: of the model as it is, each on a batch of its own.
        key: of the directions.
        epsilon: how far to look along them; the mean did not change between 1e-3 and 1e-2.

    Raises:
        ConfigError: a loss is random or no number, or `epsilon` moves nothing.
    """
    require_deterministic(model)
    bound, amount = FixedPointModel(model, master_of(model, key)), epsilon_amount(epsilon)
    total = 0.0
    try:
        for number, loss in enumerate(losses):
            probe, found = Probe(0, number, amount), list[float]()
            for point in (None, probe, probe.mirror):
                bound.write(point)
                found.append(loss_value(model, loss))
            middle, plus, minus = found
            total += (plus - middle) + (minus - middle)
    finally:
        bound.close()
    return total / len(losses) / (amount * 2.0**-UNIT_SHIFT) ** 2


def rate_for(bend: float, scalars: int) -> float:
    """The learning rate of steps that average `scalars` scalars, in two digits.

    Raises:
        ConfigError: `bend` is no number above 0: the loss has no floor in sight.
    """
    if not (math.isfinite(bend) and bend > 0):
        raise ConfigError(
            f"the loss bends by {bend:.3g} along the directions that were tried, expected more than 0, so"
            " that no learning rate follows from it: set seeds.lr, such as 1e-5"
        )
    return float(f"{_SHARED_SLOPE * scalars / bend:.{_DIGITS}g}")

"""Losses at points beside the weights: two forward passes that must see the same everything.

A loss that draws random numbers, or leaves traces in the model, is not a function of the weights:
its difference at two points says nothing, and nobody could recompute it. Such a loss is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # no public class stands for all of them
from torch.nn.modules.dropout import _DropoutNd

from runnel.errors import ConfigError
from runnel.optim.fixed_point import Probe
from runnel.optim.fixed_point_model import FixedPointModel
from runnel.optim.seed_updates import UNIT_SHIFT

Loss = Callable[[], Tensor | float]
"""The loss of the model as it is now, on a batch that stays the same: a scalar, or one per example."""

SeededLoss = Callable[[bytes], Loss]
"""The loss for a public seed, which decides the batch: on every machine the same one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What two forward passes said.

    Attributes:
        plus: the loss at the probe, float64.
        minus: the loss at its mirror.
        epsilon: their distance from the weights.
    """

    plus: float
    minus: float
    epsilon: float

    @property
    def scalar(self) -> float:
        """The slope along the direction, (plus - minus) / (2 epsilon); NaN or infinite if a loss is."""
        return (self.plus - self.minus) / (2 * self.epsilon)

    @property
    def problem(self) -> str:
        """Why this scalar cannot be used, or nothing."""
        if math.isfinite(self.plus) and math.isfinite(self.minus):
            return ""
        return (
            f"the loss is {self.plus:g} and {self.minus:g} at two points {self.epsilon:g} beside the"
            " weights: half precision overflows above 65504, use bfloat16 or float32, or a smaller"
            " learning rate"
        )


def epsilon_amount(epsilon: float) -> int:
    """Epsilon in units of 2^-28.

    Raises:
        ConfigError: it would move nothing, or leave the range of weights.
    """
    amount = round(epsilon * 2**UNIT_SHIFT) if math.isfinite(epsilon) else 0
    if not 0 < amount < 1 << 30:
        raise ConfigError(
            f"epsilon {epsilon}, expected between {2.0**-UNIT_SHIFT:.1g} and 4: 1e-3 suits most models"
        )
    return amount


def differences(
    model: FixedPointModel, loss: Loss, probes: Sequence[Probe], *, stay: bool = False
) -> tuple[Difference, ...]:
    """The loss at each probe and at its mirror; afterwards the model is at its weights again.

    With `stay` it is left at the last point, for whoever moves it next anyway: one pass less.

    Raises:
        ConfigError: the loss is random, leaves traces in the model, or has no values.
    """
    require_deterministic(model.model)
    found = []
    try:
        for probe in probes:
            model.write(probe)
            plus = loss_value(model.model, loss)
            model.write(probe.mirror)
            minus = loss_value(model.model, loss)
            found.append(Difference(plus, minus, probe.amount * 2.0**-UNIT_SHIFT))
    except BaseException:
        model.write()
        raise
    if not stay:
        model.write()
    return tuple(found)


@torch.no_grad()
def loss_value(model: nn.Module, loss: Loss) -> float:
    """The loss as float64; several values are averaged in float64.

    Raises:
        ConfigError: the loss drew random numbers, changed a buffer, or has no values.
    """
    drawn, versions = torch.random.get_rng_state(), _versions(model)
    found = loss()
    if not torch.equal(drawn, torch.random.get_rng_state()):
        raise ConfigError(
            "the loss draws random numbers (dropout in a function, or a batch that is drawn inside"
            " it): call model.eval(), and draw the batch before"
        )
    changed = [name for name, version in _versions(model).items() if version != versions.get(name)]
    if changed:
        raise ConfigError(
            f"the forward pass changes buffer {changed[0]!r} (running statistics?): call model.eval()"
        )
    if isinstance(found, Tensor):
        if not found.numel():
            raise ConfigError("the loss has no values, expected one, or one per example")
        return float(found.detach().double().mean())
    return float(found)


def require_deterministic(model: nn.Module) -> None:
    """Checks that no module draws random numbers or keeps statistics.

    Raises:
        ConfigError: one does; the line names it.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        kind = type(module).__name__
        if _drops(module):
            raise ConfigError(
                f"module {name!r} is {kind} in training mode, and drops values at random: call"
                " model.eval() before the first step"
            )
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise ConfigError(
                f"module {name!r} is {kind} in training mode, and would keep statistics of points"
                " beside the weights: call model.eval() before the first step"
            )


def _drops(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}

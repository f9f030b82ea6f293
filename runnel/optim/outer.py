"""Outer optimizers: how an aggregated pseudo-gradient moves the outer parameters.

To add one: a class behind `OuterOptimizer` and one entry in `OUTER_OPTIMIZERS`. The arithmetic is in
`runnel.kernels.outer_step`, which also fixes the order of its operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from runnel.errors import ConfigError
from runnel.kernels import Float32, momentum_step, plain_step
from runnel.protocols import OuterOptimizer

_State = tuple[Float32, Float32]


@dataclass(frozen=True, slots=True)
class Momentum:
    """Stochastic gradient descent with momentum on pseudo-gradients: Nesterov's, as in DiLoCo, or Polyak's.

    With pseudo-gradient d: ``b <- mu * b + d``, then ``parameters <- parameters - lr * (d + mu * b)``,
    or ``- lr * b`` for a heavy ball, to which a change of d comes through later. The gain of a constant
    d is lr / (1 - mu) in both.
    """

    lr: float
    """Outer learning rate, above 0."""
    momentum: float
    """mu, from 0 to below 1."""
    ahead: bool = True
    """Whether it looks ahead, as Nesterov's does; or else it is a heavy ball."""

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "nesterov" if self.ahead else "heavy-ball"

    def step(
        self,
        parameters: Float32,
        momentum: Float32,
        pseudo_gradient: Float32,
        *,
        final: bool,
        out: _State | None = None,
    ) -> None:
        """See `OuterOptimizer.step`. A `final` step subtracts the pseudo-gradient.

        Raises:
            ValueError: the arrays are not contiguous float32 vectors of one size.
        """
        state = (parameters, momentum)
        if final:
            _average(state, pseudo_gradient, out or state)
            return
        rates, mix = (self.lr, self.momentum), (1.0, self.momentum) if self.ahead else (0.0, 1.0)
        momentum_step(state, pseudo_gradient, out or state, rates=rates, mix=mix)


@dataclass(frozen=True, slots=True)
class Sgd:
    """No momentum: ``parameters <- parameters - lr * d``; with lr 1 it is federated averaging.

    What SparseLoCo uses, where error feedback takes the momentum's place. Momentum stays as it is.
    """

    lr: float
    """Outer learning rate, above 0."""

    def __post_init__(self) -> None:
        _check(self.lr, 0.0)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "sgd"

    def step(
        self,
        parameters: Float32,
        momentum: Float32,
        pseudo_gradient: Float32,
        *,
        final: bool,
        out: _State | None = None,
    ) -> None:
        """See `OuterOptimizer.step`. A `final` step subtracts the pseudo-gradient.

        Raises:
            ValueError: the arrays are not contiguous float32 vectors of one size.
        """
        lr = 1.0 if final else self.lr
        _average((parameters, momentum), pseudo_gradient, out or (parameters, momentum), lr=lr)


OUTER_OPTIMIZERS: Mapping[str, Callable[[float, float], OuterOptimizer]] = {
    "nesterov": Momentum,
    "heavy-ball": partial(Momentum, ahead=False),
    "sgd": lambda lr, _: Sgd(lr),
}
"""Every outer optimizer, made from (lr, momentum), by the name under which manifests choose it."""


def optimizer_named(name: str, *, lr: float, momentum: float) -> OuterOptimizer:
    """The outer optimizer called `name`.

    Raises:
        ConfigError: there is none of that name, or a number is out of range.
    """
    if name not in OUTER_OPTIMIZERS:
        known = ", ".join(OUTER_OPTIMIZERS)
        raise ConfigError(f"outer optimizer {name!r} is unknown; known ones: {known}")
    return OUTER_OPTIMIZERS[name](lr, momentum)


def _average(before: _State, pseudo_gradient: Float32, after: _State, *, lr: float = 1.0) -> None:
    plain_step(before[0], pseudo_gradient, after[0], lr=lr)
    if after[1] is not before[1]:
        after[1][:] = before[1]


def _check(lr: float, momentum: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"outer lr is {lr}, expected a positive number such as 0.7")
    if not 0 <= momentum < 1:
        raise ConfigError(f"outer momentum is {momentum}, expected 0 to below 1, such as 0.8")

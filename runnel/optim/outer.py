"""Outer optimizers: how an aggregated pseudo-gradient moves the outer parameters.

To add one: a class behind `OuterOptimizer` and one entry in `OUTER_OPTIMIZERS`. The arithmetic is in
`runnel.kernels.outer_step`, which also fixes the order of its operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runnel.errors import ConfigError
from runnel.kernels import Float32, momentum_step, plain_step
from runnel.protocols import OuterOptimizer

_State = tuple[Float32, Float32]


@dataclass(frozen=True, slots=True)
class Nesterov:
    """Stochastic gradient descent with Nesterov's momentum on pseudo-gradients, as in DiLoCo.

    With pseudo-gradient d: ``b <- mu * b + d``, then ``parameters <- parameters - lr * (d + mu * b)``.
    The gain of a constant d is lr / (1 - mu).
    """

    lr: float
    """Outer learning rate, above 0."""
    momentum: float
    """mu, from 0 to below 1."""

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "nesterov"

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
        rates, mix = (self.lr, self.momentum), (1.0, self.momentum)
        _push((parameters, momentum), pseudo_gradient, out, None if final else (rates, mix))


@dataclass(frozen=True, slots=True)
class HeavyBall:
    """Polyak's momentum: ``b <- mu * b + d``, then ``parameters <- parameters - lr * b``.

    The gain of a constant d is lr / (1 - mu), as Nesterov's, but a change of d comes through later.
    """

    lr: float
    """Outer learning rate, above 0."""
    momentum: float
    """mu, from 0 to below 1."""

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "heavy-ball"

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
        rates, mix = (self.lr, self.momentum), (0.0, 1.0)
        _push((parameters, momentum), pseudo_gradient, out, None if final else (rates, mix))


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
    "nesterov": Nesterov,
    "heavy-ball": HeavyBall,
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


def _push(
    before: _State,
    pseudo_gradient: Float32,
    after: _State | None,
    rule: tuple[tuple[float, float], tuple[float, float]] | None,
) -> None:
    """A step with momentum by (rates, mix), or a plain averaging for None; in place without `after`."""
    if rule is None:
        _average(before, pseudo_gradient, after or before)
    else:
        momentum_step(before, pseudo_gradient, after or before, rates=rule[0], mix=rule[1])


def _average(before: _State, pseudo_gradient: Float32, after: _State, *, lr: float = 1.0) -> None:
    plain_step(before[0], pseudo_gradient, after[0], lr=lr)
    if after[1] is not before[1]:
        after[1][:] = before[1]


def _check(lr: float, momentum: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"outer lr is {lr}, expected a positive number such as 0.7")
    if not 0 <= momentum < 1:
        raise ConfigError(f"outer momentum is {momentum}, expected 0 to below 1, such as 0.8")

"""Outer optimizers: how an aggregated pseudo-gradient moves the outer parameters.

To add one: a class behind `OuterOptimizer` and one entry in `OUTER_OPTIMIZERS`. The arithmetic is in
`runnel.kernels.outer_step`, which also fixes the order of its operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from runnel.errors import ConfigError
from runnel.kernels import Float32, adam_step, momentum_step, plain_step
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
    slots: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "nesterov" if self.ahead else "heavy-ball"

    def at(self, turn: int) -> Self:
        """See `OuterOptimizer.at`."""
        del turn
        return self

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

    What SparseLoCo uses, where error feedback takes the momentum's place. Keeps nothing: a state is the
    parameters alone.
    """

    lr: float
    """Outer learning rate, above 0."""
    slots: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check(self.lr, 0.0)

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "sgd"

    def at(self, turn: int) -> Self:
        """See `OuterOptimizer.at`."""
        del turn
        return self

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


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam on pseudo-gradients: each value moves by about lr, however large or small they are.

    With pseudo-gradient d: ``m <- beta1 * m + (1 - beta1) * d``, ``v <- beta2 * v + (1 - beta2) * d * d``,
    ``parameters <- parameters - lr * m / (sqrt(v) + epsilon)``. Keeps two values of each parameter.
    Good learning rates are near the size of a pseudo-gradient's values, far below those of the others.

    With `freezes` it is 1-bit Adam: once a fragment has had 1 / (1 - beta2) rounds, v stays as it is. Codecs of
    a bit or two need that: what they send of small values is too large, v grows by it, and does not shrink when
    error feedback takes it back, as m does. The paper compresses m and keeps what that lost; here d is
    compressed and error feedback keeps what that lost, which comes to the same where v is constant, so that
    a contribution stands for what was learned, as with the other optimizers. Where pseudo-gradients shrink
    so do its steps: in the learning benchmark it lost to both adam and nesterov with signs.

    Source: *Adaptive Federated Optimization* (Reddi et al. 2021), algorithm 2 (FedAdam, "FedOpt"); *1-bit Adam*
    (Tang et al. 2021), algorithm 1, where v stays from a step on that is set, or that 1 / (1 - beta2) steps
    without much change of v find.
    """

    lr: float
    """Outer learning rate, above 0."""
    momentum: float
    """beta1, from 0 to below 1."""
    beta2: float
    """Decay of the mean squares, from 0 to below 1."""
    epsilon: float
    """tau in the paper: added to the root of the mean square, above 0."""
    freezes: bool = False
    """Whether the mean squares stay as they are after a while."""
    frozen: bool = False
    """Whether they do so by now."""
    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)
        if not 0 <= self.beta2 < 1:
            raise ConfigError(f"outer beta2 is {self.beta2}, expected 0 to below 1, such as 0.99")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(
                f"outer epsilon is {self.epsilon}, expected a positive number such as 0.001"
            )

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        return "one-bit-adam" if self.freezes else "adam"

    @property
    def warmup(self) -> int:
        """Rounds of a fragment before its mean squares may freeze."""
        return round(1 / (1 - self.beta2))

    def at(self, turn: int) -> Adam:
        """See `OuterOptimizer.at`."""
        return replace(self, frozen=self.freezes and turn >= self.warmup)

    def step(
        self,
        parameters: Float32,
        momentum: Float32,
        pseudo_gradient: Float32,
        *,
        final: bool,
        out: _State | None = None,
    ) -> None:
        """See `OuterOptimizer.step`; `momentum` is [2, values]. A `final` step subtracts the pseudo-gradient.

        Raises:
            ValueError: the arrays are not contiguous float32 vectors of one size.
        """
        state = (parameters, momentum)
        if final:
            _average(state, pseudo_gradient, out or state)
            return
        rates, betas = (self.lr, self.epsilon), (self.momentum, 1.0 if self.frozen else self.beta2)
        adam_step(state, pseudo_gradient, out or state, rates=rates, betas=betas)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The numbers behind a name; each optimizer takes those that it has a use for."""

    lr: float
    momentum: float
    beta2: float
    epsilon: float


OUTER_OPTIMIZERS: Mapping[str, Callable[[Rates], OuterOptimizer]] = {
    "nesterov": lambda r: Momentum(r.lr, r.momentum),
    "heavy-ball": lambda r: Momentum(r.lr, r.momentum, ahead=False),
    "sgd": lambda r: Sgd(r.lr),
    "adam": lambda r: Adam(r.lr, r.momentum, r.beta2, r.epsilon),
    "one-bit-adam": lambda r: Adam(r.lr, r.momentum, r.beta2, r.epsilon, freezes=True),
}
"""Every outer optimizer by the name under which manifests choose it."""


def optimizer_named(
    name: str, *, lr: float, momentum: float, beta2: float = 0.99, epsilon: float = 1e-3
) -> OuterOptimizer:
    """The outer optimizer called `name`.

    Raises:
        ConfigError: there is none of that name, or a number is out of range.
    """
    if name not in OUTER_OPTIMIZERS:
        known = ", ".join(OUTER_OPTIMIZERS)
        raise ConfigError(f"outer optimizer {name!r} is unknown; known ones: {known}")
    return OUTER_OPTIMIZERS[name](Rates(lr=lr, momentum=momentum, beta2=beta2, epsilon=epsilon))


def _average(before: _State, pseudo_gradient: Float32, after: _State, *, lr: float = 1.0) -> None:
    plain_step(before[0], pseudo_gradient, after[0], lr=lr)
    if after[1] is not before[1]:
        after[1][:] = before[1]


def _check(lr: float, momentum: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"outer lr is {lr}, expected a positive number such as 0.7")
    if not 0 <= momentum < 1:
        raise ConfigError(f"outer momentum is {momentum}, expected 0 to below 1, such as 0.8")

"""Outer optimizers: how an aggregated pseudo-gradient moves the outer parameters.

To add one: a class behind `OuterOptimizer` and one entry in `OUTER_OPTIMIZERS`. The arithmetic is in
`runnel.kernels.outer_step`, which also fixes the order of its operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runnel.errors import ConfigError
from runnel.kernels import Float32, averaging_step, nesterov_step
from runnel.protocols import OuterOptimizer


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
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"outer lr is {self.lr}, expected a positive number such as 0.7")
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                f"outer momentum is {self.momentum}, expected 0 to below 1, such as 0.8"
            )

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
        out: tuple[Float32, Float32] | None = None,
    ) -> None:
        """See `OuterOptimizer.step`. A `final` step subtracts the pseudo-gradient.

        Raises:
            ValueError: the arrays are not contiguous float32 vectors of one size.
        """
        after = (parameters, momentum) if out is None else out
        if final:
            averaging_step(parameters, pseudo_gradient, after[0])
            if after[1] is not momentum:
                after[1][:] = momentum
        else:
            state = (parameters, momentum)
            nesterov_step(state, pseudo_gradient, after, lr=self.lr, mu=self.momentum)


OUTER_OPTIMIZERS: Mapping[str, Callable[[float, float], OuterOptimizer]] = {"nesterov": Nesterov}
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

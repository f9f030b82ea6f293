"""AdamW whose steps are averaged instead of its learning rate being lowered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from runnel.errors import ConfigError
from runnel.optim.eager import EagerOptimizer

_EPSILON = 1e-8


class ScheduleFreeAdamW(EagerOptimizer):
    """AdamW in three sequences: z takes the steps, x is their average, and gradients are those at y between.

    With ``y = (1 - beta1) * z + beta1 * x``, the step ``u = g / (sqrt(v / (1 - beta2^t)) + 1e-8) + decay * y``
    for the gradient g at y, and the part c that the newest z has in the average (the square of the highest
    rate so far, over the sum of those of all steps)::

        z < -z - lr * u
        x < -(1 - c) * x + c * z

    The parameters hold y, so that whoever computes gradients need not know of this; `averaged` puts x there
    for a while. Beside y only ``z - y`` is kept: x is ``y - (z - y) * (1 - beta1) / beta1``. So what is
    added to the parameters from outside, a merge, moves all three sequences alike, and nothing is told of
    it. In a swarm y is what enters pseudo-gradients: nine tenths of the way to x with the usual beta1, and
    outer parameters average it over peers and rounds once more.

    Rates should stay at their peak after the warm-up: ``inner.final_lr_share = 1``. Memory: two values of
    state for each parameter, as with AdamW.

    Source: *The Road Less Scheduled* (Defazio et al. 2024), algorithm 1.

    Args:
        groups: of parameters, as torch's optimizers take them.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled, towards zero from y.
        betas: beta1, above 0 and below 1, says where y is; beta2 is the decay of squared gradients.

    Raises:
        ConfigError: beta1 is 0, and x could not be told.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        if not betas[0] > 0:
            raise ConfigError(f"betas {betas}: schedule-free expected 0 < beta1 < 1, such as 0.9")
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """One step of every parameter that has a gradient; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are x, the average, within; afterwards, bit for bit, what they were. Holds a copy."""
        held: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for group in self.param_groups:
                back = (1 - group["betas"][0]) / group["betas"][0]
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if state:
                        held.append((parameter, parameter.clone()))
                        parameter.sub_(state["ahead"], alpha=back)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in held:
                    parameter.copy_(values)

    def _move(self, y: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, lr, (beta1, beta2) = self.state[y], group["lr"], group["betas"]
        if not state:
            zeros = torch.zeros_like(y), torch.zeros_like(y)
            state.update(steps=0, highest=0.0, weights=0.0, square=zeros[0], ahead=zeros[1])
        state["steps"] += 1
        state["highest"] = max(state["highest"], lr)
        state["weights"] += state["highest"] ** 2
        c = state["highest"] ** 2 / state["weights"] if state["weights"] else 0.0
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = square.sqrt() / math.sqrt(1 - beta2 ** state["steps"]) + _EPSILON
        u = (gradient / size).add_(y, alpha=group["weight_decay"])
        ahead = state["ahead"]  # z - y
        y.add_(ahead, alpha=c).add_(u, alpha=lr * (beta1 * (1 - c) - 1))
        ahead.sub_(u, alpha=lr * beta1).mul_(1 - c)

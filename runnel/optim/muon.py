"""Muon: momentum made orthogonal for hidden matrices, AdamW for everything else, in one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from runnel.optim.eager import EagerOptimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration: steep at zero, singular values end between about 0.7 and 1.2."""

_ITERATIONS = 5
_TINY = 1e-7
_MOMENTUM = 0.95


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each, roughly: U V^T of the singular value decomposition U S V^T.

    Five quintic Newton-Schulz steps, in the matrices' own dtype (fp32 on processors, where bf16 is
    slower). Two products of the shorter side squared times the longer one a step, and one more.

    Source: Jordan et al. 2024, *Muon: an optimizer for hidden layers in neural networks*.

    Args:
        matrices: [..., rows, columns]; zero matrices stay zero.
    """
    a, b, c = _QUINTIC
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_TINY)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result


class Muon(EagerOptimizer):
    """Muon on `matrices`, AdamW on `others`; two groups, each with a learning rate of its own.

    A matrix W with gradient G and momentum M: ``M <- 0.95 M + G``, then
    ``W <- W - lr * max(1, rows / columns)^(1/2) * orthogonalized(G + 0.95 M)``. Memory: one value of
    state for each of a matrix, two for each of the others.

    Source: Jordan et al. 2024; that its updates compress best under outer steps: *MuLoCo*.

    Args:
        matrices: parameters of rank 2.
        others: any parameters; those of rank below 2 do not decay.
        matrix_lr: learning rate of matrices; a step moves every direction by about as much.
        lr: learning rate of the others.
        weight_decay: decoupled; both kinds decay by ``lr * weight_decay`` a step, while the rates keep
            their ratio.
        betas: decays of AdamW's moments.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        matrix_lr: float,
        lr: float,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        rest = list(others)
        shared: dict[str, Any] = {"betas": betas, "orthogonal": False}
        groups: list[dict[str, Any]] = [
            {
                **shared,
                "params": list(matrices),
                "lr": matrix_lr,
                "orthogonal": True,
                "weight_decay": weight_decay * lr / matrix_lr,
            },
            {
                **shared,
                "params": [p for p in rest if p.ndim >= 2],
                "lr": lr,
                "weight_decay": weight_decay,
            },
            {**shared, "params": [p for p in rest if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if group["orthogonal"]:
                    self._turn(parameter, parameter.grad, group["lr"])
                else:
                    self._adapt(parameter, parameter.grad, group["lr"], *group["betas"])
        return loss

    def _turn(self, matrix: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].mul_(_MOMENTUM).add_(gradient)
        update = orthogonalized(gradient + _MOMENTUM * momentum)
        rows, columns = matrix.shape
        matrix.sub_(update, alpha=lr * math.sqrt(max(1.0, rows / columns)))

    def _adapt(
        self, values: Tensor, gradient: Tensor, lr: float, beta1: float, beta2: float
    ) -> None:
        """AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
        state = self.state[values]
        if not state:
            state.update(steps=0, mean=torch.zeros_like(values), square=torch.zeros_like(values))
        state["steps"] += 1
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = square.sqrt() / math.sqrt(1 - beta2 ** state["steps"]) + 1e-8
        values.addcdiv_(mean, size, value=-lr / (1 - beta1 ** state["steps"]))

"""Optimizers of the inner steps, by the names a manifest uses, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from runnel.errors import ConfigError

INNER_OPTIMIZERS = ("adamw", "sgd")
"""Names that `inner_optimizer` knows."""


def inner_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> Optimizer:
    """A torch optimizer over the trainable ones of `parameters`; tied ones are taken once.

    Only matrices and tensors of higher rank decay; norms and biases do not.

    Args:
        name: ``"adamw"``, or ``"sgd"`` with Nesterov momentum `beta1` (plain for 0; `beta2` unused).
        parameters: of one model.
        lr: peak learning rate; multiply each group's ``lr`` by a schedule's factor.
        weight_decay: decoupled for adamw, in the gradient for sgd.
        beta1: momentum, 0 <= beta1 < 1.
        beta2: averaging of squared gradients, 0 <= beta2 < 1.

    Raises:
        ConfigError: an unknown name, a number out of range, or nothing to train.
    """
    _check_numbers(name, lr, weight_decay, beta1, beta2)
    trained = list({id(value): value for value in parameters if value.requires_grad}.values())
    if not trained:
        raise ConfigError("the model has 0 trainable parameters, expected at least 1")
    groups = [
        {"params": [value for value in trained if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=(beta1, beta2))
    return SGD(groups, lr=lr, momentum=beta1, nesterov=beta1 > 0)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales all gradients together so that their norm is at most `max_norm`; gives the norm before.

    A `max_norm` of 0 sets no limit.

    With a NaN or an infinity among them the norm is NaN and the gradients stay as they are (torch's
    own clipping would spread it over all of them): the caller withholds that step.
    """
    gradients = [value.grad for value in parameters if value.grad is not None]
    squares = [float(torch.linalg.vector_norm(gradient)) ** 2 for gradient in gradients]
    norm = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan
    if norm > max_norm > 0:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def _check_numbers(name: str, lr: float, weight_decay: float, beta1: float, beta2: float) -> None:
    if name not in INNER_OPTIMIZERS:
        known = ", ".join(INNER_OPTIMIZERS)
        raise ConfigError(f"inner optimizer {name!r} is not known, expected one of {known}")
    if not (0 < lr < math.inf and 0 <= weight_decay < math.inf):
        raise ConfigError(f"lr {lr}, weight_decay {weight_decay}: expected lr > 0 and decay >= 0")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ConfigError(f"beta1 {beta1}, beta2 {beta2}: expected 0 <= beta < 1")

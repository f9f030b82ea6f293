"""Optimizers of the inner steps, by the names a manifest uses, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from runnel.errors import ConfigError
from runnel.optim.eager import EagerAdamW, EagerSGD
from runnel.optim.fragments import layer_of
from runnel.optim.muon import Muon
from runnel.optim.schedule_free import ScheduleFreeAdamW

if TYPE_CHECKING:
    from torch.optim import Optimizer

INNER_OPTIMIZERS = ("adamw", "muon", "schedule-free", "sgd")
"""Names that `inner_optimizer` knows."""


def inner_optimizer(
    name: str,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    matrix_lr: float = 0.02,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
) -> Optimizer:
    """A torch optimizer over the trainable ones of a model's parameters; tied ones are taken once.

    Only matrices and tensors of higher rank decay; norms and biases do not. Each group has its peak
    rate as ``initial_lr``, which `set_learning_rates` multiplies.

    Args:
        name: ``"adamw"``; ``"muon"`` for the matrices of layers, with adamw for embeddings, heads, norms
            and biases; ``"schedule-free"``: adamw for a constant rate, whose ``betas[0]`` is above 0;
            ``"sgd"`` with Nesterov momentum ``betas[0]`` (plain for 0).
        named_parameters: of one model. A parameter belongs to a layer if a part of its name is a number.
        lr: peak learning rate.
        matrix_lr: peak learning rate of what muon steps.
        weight_decay: decoupled for adamw and muon, in the gradient for sgd.
        betas: decays of the means of gradients and of their squares, each from 0 to below 1.

    Raises:
        ConfigError: an unknown name, a number out of range, or nothing to train.
    """
    _check_numbers(name, (lr, matrix_lr), weight_decay, betas)
    trained = {id(p): (path, p) for path, p in named_parameters if p.requires_grad}.values()
    if not trained:
        raise ConfigError("the model has 0 trainable parameters, expected at least 1")
    if name == "muon":
        optimizer: Optimizer = _muon(trained, lr, matrix_lr, weight_decay, betas)
    else:
        groups = [
            {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if name == "adamw":
            optimizer = EagerAdamW(groups, lr=lr, betas=betas)
        elif name == "schedule-free":
            optimizer = ScheduleFreeAdamW(groups, lr=lr, betas=betas)
        else:
            optimizer = EagerSGD(groups, lr=lr, momentum=betas[0], nesterov=betas[0] > 0)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Gives every group `factor` times its peak rate, ``initial_lr`` as torch's schedulers call it."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def forget(optimizer: Optimizer) -> None:
    """Drops all that an optimizer remembers of its steps, moments and counts alike; rates and schedules stay."""
    optimizer.state.clear()


def _muon(
    trained: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    matrix_lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> Muon:
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for path, parameter in trained:
        is_hidden = parameter.ndim == 2 and layer_of(path) is not None
        (matrices if is_hidden else others).append(parameter)
    if not matrices:
        raise ConfigError(
            "muon finds 0 matrices in layers (names with a number, such as blocks.0.weight), expected at"
            " least 1; choose adamw"
        )
    return Muon(
        matrices, others, matrix_lr=matrix_lr, lr=lr, weight_decay=weight_decay, betas=betas
    )


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


def _check_numbers(
    name: str, rates: tuple[float, float], weight_decay: float, betas: tuple[float, float]
) -> None:
    if name not in INNER_OPTIMIZERS:
        known = ", ".join(INNER_OPTIMIZERS)
        raise ConfigError(f"inner optimizer {name!r} is not known, expected one of {known}")
    if not (all(0 < rate < math.inf for rate in rates) and 0 <= weight_decay < math.inf):
        raise ConfigError(
            f"lr {rates[0]}, matrix_lr {rates[1]}, weight_decay {weight_decay}: expected rates above 0"
            " and decay >= 0"
        )
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas {betas}: expected 0 <= beta < 1")
